-- Orders of this run that the vendor accepted and did not answer in time. Read together with the payload, which is before it in the row.
ALTER TABLE jobs ADD COLUMN unanswered INTEGER NOT NULL DEFAULT 0;
