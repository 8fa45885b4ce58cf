-- The `traceparent` that a job was submitted with. Jobs without one have nothing here.
ALTER TABLE jobs ADD COLUMN traceparent TEXT;
