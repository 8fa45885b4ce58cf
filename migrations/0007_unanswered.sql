-- Orders of this run that the vendor accepted and did not answer in time. Stored behind the payload, so it is read together with it.
ALTER TABLE jobs ADD COLUMN unanswered INTEGER NOT NULL DEFAULT 0;
