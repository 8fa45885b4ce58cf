-- The vendor's answer to the last attempt, if that brought no data, as JSON: {"status": 422, "body": "..."}.
ALTER TABLE jobs ADD COLUMN said TEXT;
-- How often in a row the vendor answered "slow down".
ALTER TABLE jobs ADD COLUMN slowed INTEGER NOT NULL DEFAULT 0;
