-- What the vendor said when its last attempt brought no data, as JSON: {"status": 422, "body": "..."}.
ALTER TABLE jobs ADD COLUMN said TEXT;
-- How often in a row the vendor asked to slow down.
ALTER TABLE jobs ADD COLUMN slowed INTEGER NOT NULL DEFAULT 0;
