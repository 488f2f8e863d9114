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

-- A kept plan may have been made when there was one row where there are 100,000 now: what works on
-- many edges is planned each time, and LATERAL ... OFFSET 0 keeps to one look-up by index a row.

-- Dependencies: what waits for a job, or for the jobs of an array, is settled by the transaction in
-- which these end. True: met; false: it can be met no more; NULL: open. A job is like an array of one.
CREATE FUNCTION remuda_verdict(p_condition text, p_quantifier text, p_size int, p_ended int, p_ok int)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE p_condition || ' ' || p_quantifier
    WHEN 'success all' THEN CASE WHEN p_ok < p_ended THEN false WHEN p_ended = p_size THEN true END
    WHEN 'success any' THEN CASE WHEN p_ok > 0 THEN true WHEN p_ended = p_size THEN false END
    WHEN 'failure all' THEN CASE WHEN p_ok > 0 THEN false WHEN p_ended = p_size THEN true END
    WHEN 'failure any' THEN CASE WHEN p_ok < p_ended THEN true WHEN p_ended = p_size THEN false END
    WHEN 'end all' THEN CASE WHEN p_ended = p_size THEN true END
    WHEN 'end any' THEN CASE WHEN p_ended > 0 THEN true END
  END
$$;

-- How the job ended, in words; of one that a dependency ended: what that one was told.
CREATE FUNCTION remuda_ending(p jobs) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN p.reason = 'DEPENDENCY' THEN p.message
    ELSE 'job ' || p.id || CASE WHEN p.name <> '' THEN ' ''' || left(p.name, 100) || '''' ELSE '' END
      || ' ended ' || p.reason || CASE
           WHEN p.reason = 'NONZERO' AND p.exit_code IS NOT NULL THEN ' (exit code ' || p.exit_code || ')'
           WHEN p.reason = 'SIGNALLED' AND p.signal IS NOT NULL THEN ' (signal ' || p.signal || ')'
           ELSE '' END
  END
$$;

-- Tells each job what the one at the end of its pointers was told; a root points at itself. Each round
-- doubles the steps a pointer spans, so that a chain of thousands takes a dozen of them.
CREATE FUNCTION remuda_told(p_ids bigint[], p_to bigint[], p_roots bigint[], p_told text[])
RETURNS text[] LANGUAGE plpgsql SET enable_nestloop = off SET enable_hashjoin = on AS $$
DECLARE moved boolean := true; next bigint[]; told text[];
BEGIN
  WHILE moved LOOP
    SELECT array_agg(b.too ORDER BY a.ord), bool_or(b.too <> a.too) INTO next, moved
    FROM unnest(p_ids, p_to) WITH ORDINALITY AS a(id, too, ord)
    JOIN unnest(p_ids, p_to) AS b(id, too) ON b.id = a.too;
    p_to := next;
  END LOOP;
  SELECT array_agg(r.told ORDER BY a.ord) INTO told
  FROM unnest(p_to) WITH ORDINALITY AS a(root, ord)
  JOIN unnest(p_roots, p_told) AS r(root, told) USING (root);
  RETURN told;
END $$;

-- Ends the jobs, which wait in vain for the reasons told, and all that need their success in turn;
-- returns those it ended.
CREATE FUNCTION remuda_doom(p_roots bigint[], p_told text[]) RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_nestloop = on
SET plan_cache_mode = force_custom_plan AS $$
DECLARE ids bigint[]; too bigint[]; done bigint[];
BEGIN
  WITH RECURSIVE closure(id) AS (
    SELECT unnest(p_roots)
    UNION
    SELECT n.job_id FROM closure c CROSS JOIN LATERAL (
      SELECT d.job_id FROM dependencies d JOIN jobs j ON j.id = d.job_id AND j.state = 'NEW'
      WHERE d.parent_id = c.id AND NOT d.met AND d.condition = 'success' OFFSET 0) AS n
  ) SELECT array_agg(id) INTO ids FROM closure;
  IF cardinality(ids) > cardinality(p_roots) THEN
    SELECT array_agg(id), array_agg(at) INTO ids, too FROM (
      SELECT id, id AS at FROM unnest(p_roots) AS id
      UNION ALL
      SELECT * FROM (
        SELECT n.job_id, min(c.id) FROM unnest(ids) AS c(id) CROSS JOIN LATERAL (
          SELECT d.job_id FROM dependencies d JOIN jobs j ON j.id = d.job_id AND j.state = 'NEW'
          WHERE d.parent_id = c.id AND NOT d.met AND d.condition = 'success' OFFSET 0) AS n
        WHERE n.job_id NOT IN (SELECT unnest(p_roots)) GROUP BY 1) AS others
    ) AS pointers;
    p_told := remuda_told(ids, too, p_roots, p_told);
  ELSE
    ids := p_roots;
  END IF;
  WITH locked AS (
    SELECT j.id, t.told FROM unnest(ids, p_told) AS t(id, told) JOIN jobs j USING (id)
    WHERE j.state = 'NEW' ORDER BY j.id FOR NO KEY UPDATE OF j
  ), ended AS (
    UPDATE jobs j SET state = 'TERMINATED', reason = 'DEPENDENCY', message = l.told, ended_at = now()
    FROM locked l WHERE j.id = l.id AND j.state = 'NEW' RETURNING j.id
  ) SELECT array_agg(id) INTO done FROM ended;
  RETURN done;
END $$;

-- Judges edges: those met are counted down, those that cannot be met end their jobs; returns these.
CREATE FUNCTION remuda_judge(p_edges bigint[]) RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_nestloop = on
SET plan_cache_mode = force_custom_plan AS $$
DECLARE ready boolean; ids bigint[]; told text[];
BEGIN
  WITH met AS (
    UPDATE dependencies d SET met = true WHERE d.id = ANY (p_edges) AND NOT d.met AND CASE
      WHEN d.parent_id IS NOT NULL THEN (
        SELECT remuda_verdict(d.condition, 'all', 1, 1, (p.reason = 'OK')::int)
        FROM jobs p WHERE p.id = d.parent_id AND p.state = 'TERMINATED')
      ELSE (
        SELECT remuda_verdict(d.condition, d.quantifier, a.size, a.ended, a.succeeded)
        FROM arrays a WHERE a.id = d.parent_array_id) END
    RETURNING d.job_id
  ), locked AS (
    SELECT j.id, c.count FROM (SELECT job_id, count(*)::int AS count FROM met GROUP BY 1) AS c
    JOIN jobs j ON j.id = c.job_id ORDER BY j.id FOR NO KEY UPDATE OF j
  ), fewer AS (
    UPDATE jobs j SET unmet = j.unmet - l.count FROM locked l WHERE j.id = l.id
    RETURNING j.state = 'NEW' AND j.unmet = 0 AS ready
  ) SELECT bool_or(f.ready) INTO ready FROM fewer f;
  IF ready THEN PERFORM pg_notify('remuda_wake', 'dispatch'); END IF;

  SELECT array_agg(job_id), array_agg(t.told) INTO ids, told FROM (
    SELECT DISTINCT ON (d.job_id) d.job_id, v.told FROM dependencies d
    JOIN jobs j ON j.id = d.job_id AND j.state = 'NEW'
    JOIN LATERAL (
      SELECT remuda_ending(p) AS told FROM jobs p WHERE p.id = d.parent_id AND p.state = 'TERMINATED'
        AND NOT remuda_verdict(d.condition, 'all', 1, 1, (p.reason = 'OK')::int)
    ) AS v ON true
    WHERE d.id = ANY (p_edges) AND NOT d.met AND d.parent_id IS NOT NULL
    ORDER BY d.job_id, d.parent_id) AS t;
  IF ids IS NOT NULL THEN ids := remuda_doom(ids, told); END IF;

  -- An array's edges are many and say the same: what is wrong is found out once for all of a kind.
  WITH kinds AS (
    SELECT DISTINCT parent_array_id AS id, condition, quantifier FROM dependencies
    WHERE id = ANY (p_edges) AND NOT met AND parent_array_id IS NOT NULL
  ), vain AS MATERIALIZED (
    SELECT k.*, CASE k.condition || ' ' || k.quantifier
        WHEN 'success all' THEN (
          SELECT remuda_ending(p) FROM jobs p
          WHERE p.array_id = k.id AND p.state = 'TERMINATED' AND p.reason <> 'OK'
          ORDER BY p.ended_at, p.id LIMIT 1) || ', of array ' || k.id
        WHEN 'failure all' THEN (
          SELECT remuda_ending(p) FROM jobs p
          WHERE p.array_id = k.id AND p.state = 'TERMINATED' AND p.reason = 'OK'
          ORDER BY p.ended_at, p.id LIMIT 1) || ', of array ' || k.id
        WHEN 'success any' THEN 'no job of array ' || k.id || ' succeeded'
        ELSE 'no job of array ' || k.id || ' failed' END AS told
    FROM kinds k JOIN arrays a USING (id)
    WHERE NOT remuda_verdict(k.condition, k.quantifier, a.size, a.ended, a.succeeded)
  )
  SELECT array_agg(job_id), array_agg(t.told) INTO p_edges, told FROM (
    SELECT DISTINCT ON (d.job_id) d.job_id, v.told FROM dependencies d
    JOIN vain v ON v.id = d.parent_array_id AND v.condition = d.condition
      AND v.quantifier = d.quantifier
    JOIN jobs j ON j.id = d.job_id AND j.state = 'NEW'
    WHERE d.id = ANY (p_edges) AND NOT d.met ORDER BY d.job_id, d.parent_array_id) AS t;
  IF p_edges IS NOT NULL THEN ids := ids || remuda_doom(p_edges, told); END IF;
  RETURN ids;
END $$;

-- Counts jobs that have ended in their arrays; returns the open edges that this decides. Those of an
-- array may be as many as its jobs: they are looked at when their kind is decided, not each time.
CREATE FUNCTION remuda_count(p_ended bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE edges bigint[];
BEGIN
  WITH counted AS (
    SELECT array_id AS id, count(*)::int AS ended,
           (count(*) FILTER (WHERE reason = 'OK'))::int AS succeeded
    FROM jobs WHERE id = ANY (p_ended) AND array_id IS NOT NULL GROUP BY 1
  ), locked AS (
    SELECT a.id, c.ended, c.succeeded FROM counted c JOIN arrays a USING (id)
    ORDER BY a.id FOR NO KEY UPDATE OF a
  ), grown AS (
    UPDATE arrays a SET ended = a.ended + l.ended, succeeded = a.succeeded + l.succeeded
    FROM locked l WHERE a.id = l.id
    RETURNING a.id, a.size, a.ended, a.succeeded, a.ended - l.ended AS ended_before,
              a.succeeded - l.succeeded AS succeeded_before
  )
  SELECT array_agg(n.id) INTO edges FROM grown g
  CROSS JOIN (VALUES ('success'), ('failure'), ('end')) AS c(condition)
  CROSS JOIN (VALUES ('all'), ('any')) AS q(quantifier)
  CROSS JOIN LATERAL (
    SELECT d.id FROM dependencies d WHERE d.parent_array_id = g.id AND NOT d.met
      AND d.condition = c.condition AND d.quantifier = q.quantifier
      AND remuda_verdict(c.condition, q.quantifier, g.size, g.ended_before, g.succeeded_before)
        IS NULL
      AND remuda_verdict(c.condition, q.quantifier, g.size, g.ended, g.succeeded) IS NOT NULL
    OFFSET 0) AS n;
  RETURN edges;
END $$;

-- Counts jobs that have ended in their arrays, then settles what waits for them, and what waits for
-- those that this ends, and so on: a loop of sets, for triggers that call each other would run out
-- of stack. Rows of a kind are locked in the order of their ids.
CREATE FUNCTION remuda_settle(p_ended bigint[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_nestloop = on AS $$
DECLARE of_arrays bigint[]; edges bigint[];
BEGIN
  WHILE p_ended IS NOT NULL LOOP
    of_arrays := remuda_count(p_ended);
    EXIT WHEN NOT EXISTS (SELECT FROM dependencies WHERE NOT met AND parent_id IS NOT NULL)
      AND of_arrays IS NULL;
    SELECT array_agg(n.id) INTO edges FROM unnest(p_ended) AS e(id) CROSS JOIN LATERAL (
      SELECT d.id FROM dependencies d WHERE d.parent_id = e.id AND NOT d.met OFFSET 0) AS n;
    edges := edges || of_arrays;
    EXIT WHEN edges IS NULL;
    p_ended := remuda_judge(edges);
  END LOOP;
END $$;

-- Judges the edges of these waiting jobs whose parents ended unnoticed; returns how many.
CREATE FUNCTION remuda_catch_up(p_jobs bigint[]) RETURNS int
LANGUAGE plpgsql SET enable_seqscan = off SET enable_nestloop = on
SET plan_cache_mode = force_custom_plan AS $$
DECLARE edges bigint[];
BEGIN
  SELECT array_agg(d.id) INTO edges FROM jobs j
  JOIN dependencies d ON d.job_id = j.id AND NOT d.met
  LEFT JOIN jobs p ON p.id = d.parent_id LEFT JOIN arrays a ON a.id = d.parent_array_id
  WHERE j.id = ANY (p_jobs) AND j.state = 'NEW' AND (p.state = 'TERMINATED'
    OR remuda_verdict(d.condition, d.quantifier, a.size, a.ended, a.succeeded) IS NOT NULL);
  IF edges IS NOT NULL THEN PERFORM remuda_judge(edges); END IF;
  RETURN coalesce(cardinality(edges), 0);
END $$;

-- As in the revision before, and ends are settled. The joins of the transition tables are planned
-- once, when they may have a single row: a nested loop would take hours for 100,000.
CREATE OR REPLACE FUNCTION remuda_job_moved() RETURNS trigger
LANGUAGE plpgsql SET enable_nestloop = off SET enable_hashjoin = on AS $$
DECLARE ids bigint[]; paths text[]; details jsonb[]; done bigint[]; again boolean; cancel boolean; follow boolean;
BEGIN
  SELECT array_agg(n.id), array_agg(o.state
      -- Suspended and resumed before its start was recorded, it is RUNNING already.
      || CASE WHEN n.started_at IS NOT NULL AND o.started_at IS NULL
                   AND n.state <> 'RUNNING' AND o.state <> 'RUNNING'
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
  -- What settling ends comes here again, one level deeper, only to be recorded and told.
  IF done IS NOT NULL AND pg_trigger_depth() = 1 THEN PERFORM remuda_settle(done); END IF;
  RETURN NULL;
END $$;

ALTER FUNCTION remuda_attempt_moved() SET enable_nestloop = off;
