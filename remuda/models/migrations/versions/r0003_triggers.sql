-- Every transition is checked against the table `transitions` and written to `events` by the same
-- statement that makes it; the wake-ups leave with the commit. A batch costs one insert, not one a row.

-- Writes the pairs of each path a row has gone and refuses paths with an illegal step.
CREATE FUNCTION remuda_record(p_kind text, p_ids bigint[], p_paths text[], p_details jsonb[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE bad record;
BEGIN
  WITH steps AS (
    SELECT i.id, i.ord, i.detail, s.step, split_part(i.path, ' ', s.step) AS old,
           split_part(i.path, ' ', s.step + 1) AS new
    FROM unnest(p_ids, p_paths, p_details) WITH ORDINALITY AS i(id, path, detail, ord)
    CROSS JOIN LATERAL generate_series(1, length(i.path) - length(replace(i.path, ' ', ''))) AS s(step)
  ), written AS (
    INSERT INTO events (kind, subject_id, from_state, to_state, detail)
    SELECT p_kind, id, old, new, detail FROM steps ORDER BY ord, step
  )
  SELECT s.id, s.old, s.new INTO bad FROM steps s
  WHERE NOT EXISTS (SELECT FROM transitions t WHERE t.kind = p_kind AND t.old = s.old AND t.new = s.new)
  LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION '% % cannot go from % to %', p_kind, bad.id, bad.old, bad.new
      USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'transitions';
  END IF;
END $$;

CREATE FUNCTION remuda_notify_done(p_ids bigint[]) RETURNS void LANGUAGE sql AS $$
  SELECT pg_notify('remuda_done', string_agg(id::text, ','))
  FROM unnest(p_ids) WITH ORDINALITY AS u(id, ord) GROUP BY (ord - 1) / 350
$$;

CREATE FUNCTION remuda_born() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO events (kind, subject_id, from_state, to_state)
  SELECT TG_ARGV[0], id, NULL, state FROM fresh;
  IF EXISTS (SELECT FROM fresh WHERE state <> TG_ARGV[1]) THEN
    RAISE EXCEPTION 'a % starts as %', TG_ARGV[0], TG_ARGV[1]
      USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'transitions';
  END IF;
  IF TG_ARGV[2] IS NOT NULL AND EXISTS (SELECT FROM fresh) THEN
    PERFORM pg_notify('remuda_wake', TG_ARGV[2]);
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION remuda_job_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE ids bigint[]; paths text[]; details jsonb[]; done bigint[]; again boolean; cancel boolean; follow boolean;
BEGIN
  -- A short job's record may jump: it was RUNNING if it has a start, TERMINATING if its command ended.
  SELECT array_agg(n.id), array_agg(o.state
      || CASE WHEN n.started_at IS NOT NULL AND o.started_at IS NULL AND n.state <> 'RUNNING'
              THEN ' RUNNING' ELSE '' END
      || CASE WHEN n.state = 'TERMINATED' AND o.state <> 'TERMINATING'
                   AND n.started_at IS NOT NULL AND (n.exit_code IS NOT NULL OR n.signal IS NOT NULL)
              THEN ' TERMINATING' ELSE '' END
      || ' ' || n.state),
    array_agg(CASE WHEN n.reason IS NOT NULL AND n.reason <> 'OK'
                   THEN jsonb_build_object('reason', n.reason) END),
    array_agg(n.id) FILTER (WHERE n.state = 'TERMINATED'), bool_or(n.state = 'NEW')
  INTO ids, paths, details, done, again
  FROM moved n JOIN was o USING (id) WHERE n.state <> o.state;
  IF ids IS NOT NULL THEN
    PERFORM remuda_record('job', ids, paths, details);
    IF done IS NOT NULL THEN PERFORM remuda_notify_done(done); END IF;
    IF again THEN PERFORM pg_notify('remuda_wake', 'dispatch'); END IF;
  END IF;
  SELECT bool_or(n.cancel_requested_at IS NOT NULL AND o.cancel_requested_at IS NULL),
         bool_or(n.follow AND NOT o.follow)
  INTO cancel, follow
  FROM moved n JOIN was o USING (id) WHERE n.state <> 'TERMINATED';
  IF cancel THEN PERFORM pg_notify('remuda_wake', 'cancel'); END IF;
  IF follow THEN PERFORM pg_notify('remuda_wake', 'follow'); END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION remuda_attempt_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE ids bigint[]; paths text[]; details jsonb[];
BEGIN
  SELECT array_agg(n.id), array_agg(o.state
      || CASE WHEN n.started_at IS NOT NULL AND o.started_at IS NULL AND n.state <> 'STARTED'
              THEN ' STARTED' ELSE '' END
      || CASE WHEN n.state = 'COLLECTED' AND o.state <> 'EXITED' THEN ' EXITED' ELSE '' END
      || ' ' || n.state),
    array_agg(CASE WHEN n.reason IS NOT NULL AND n.reason <> 'OK'
                   THEN jsonb_build_object('reason', n.reason) END)
  INTO ids, paths, details
  FROM moved n JOIN was o USING (id) WHERE n.state <> o.state;
  IF ids IS NOT NULL THEN PERFORM remuda_record('attempt', ids, paths, details); END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION remuda_vm_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE ids bigint[]; paths text[]; details jsonb[]; ready boolean; others boolean;
BEGIN
  SELECT array_agg(n.id), array_agg(o.state || ' ' || n.state),
    array_agg(CASE WHEN n.error IS NOT NULL THEN jsonb_build_object('error', n.error) END),
    bool_or(n.state = 'RUNNING'), bool_or(n.state <> 'RUNNING')
  INTO ids, paths, details, ready, others
  FROM moved n JOIN was o USING (id) WHERE n.state <> o.state;
  IF ids IS NOT NULL THEN
    PERFORM remuda_record('vm', ids, paths, details);
    IF ready THEN PERFORM pg_notify('remuda_wake', 'dispatch'); END IF;
    IF others THEN PERFORM pg_notify('remuda_wake', 'vm'); END IF;
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION remuda_pool_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE ids bigint[]; paths text[]; details jsonb[];
BEGIN
  SELECT array_agg(n.id), array_agg(o.state || ' ' || n.state),
    array_agg(CASE WHEN n.message IS NOT NULL THEN jsonb_build_object('message', n.message) END)
  INTO ids, paths, details
  FROM moved n JOIN was o USING (id) WHERE n.state <> o.state;
  IF ids IS NOT NULL THEN PERFORM remuda_record(TG_ARGV[0], ids, paths, details); END IF;
  -- Whoever changes what a pool should be touches updated_at; sizing itself does not.
  IF TG_ARGV[0] = 'pool' AND (ids IS NOT NULL OR EXISTS (
      SELECT FROM moved n JOIN was o USING (id)
      WHERE (to_jsonb(n) ->> 'updated_at') <> (to_jsonb(o) ->> 'updated_at'))) THEN
    PERFORM pg_notify('remuda_wake', 'pool');
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER born AFTER INSERT ON jobs REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_born('job', 'NEW', 'dispatch');
CREATE TRIGGER born AFTER INSERT ON attempts REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_born('attempt', 'PLACED');
CREATE TRIGGER born AFTER INSERT ON vms REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_born('vm', 'NEW');
CREATE TRIGGER born AFTER INSERT ON images REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_born('image', 'NEW');
CREATE TRIGGER born AFTER INSERT ON pools REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_born('pool', 'UNSUBMITTED');
CREATE TRIGGER moved AFTER UPDATE ON jobs REFERENCING OLD TABLE AS was NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_job_moved();
CREATE TRIGGER moved AFTER UPDATE ON attempts REFERENCING OLD TABLE AS was NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_attempt_moved();
CREATE TRIGGER moved AFTER UPDATE ON vms REFERENCING OLD TABLE AS was NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_vm_moved();
CREATE TRIGGER moved AFTER UPDATE ON images REFERENCING OLD TABLE AS was NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_pool_moved('image');
CREATE TRIGGER moved AFTER UPDATE ON pools REFERENCING OLD TABLE AS was NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_pool_moved('pool');
