-- Calls wake the workers, their answers whoever asked.
CREATE FUNCTION remuda_called() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('remuda_wake', 'call');
  RETURN NULL;
END $$;

CREATE FUNCTION remuda_answered() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE ids text;
BEGIN
  SELECT string_agg(n.id::text, ',') INTO ids
  FROM moved n JOIN was o USING (id) WHERE n.answered_at IS NOT NULL AND o.answered_at IS NULL;
  IF ids IS NOT NULL THEN PERFORM pg_notify('remuda_answer', ids); END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER called AFTER INSERT ON calls
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_called();
CREATE TRIGGER answered AFTER UPDATE ON calls REFERENCING OLD TABLE AS was NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_answered();
