-- Leases: which VMs may be leased, and how one is taken and given back, each in one call.
-- The checks that vms.check_failures counts come with a later revision; nothing is leased before it.

-- The running VMs of pools (of `p_vms`, if given). `unfit`: why one may not be leased, empty if it may.
CREATE FUNCTION remuda_lease_vms(p_pools bigint[], p_vms bigint[] DEFAULT NULL)
RETURNS TABLE (id bigint, pool_id bigint, slots int, used_slots int, isolation text,
               bound_owner_id bigint, bound_sandbox text, holders bigint[], leased_owner_id bigint,
               leased_sandbox text, spent boolean, unfit text)
LANGUAGE sql STABLE AS $$
  SELECT v.id, v.pool_id, v.slots, u.slots, p.isolation, v.bound_owner_id, v.bound_sandbox, u.holders,
         v.leased_owner_id, v.leased_sandbox, s.spent,
         CASE
           -- Since its watch was last taken over it must have been heard: the rest is hearsay. Of what
           -- has no runner only its checks tell.
           WHEN p.backend <> 'none' AND (v.heartbeat_at IS NULL OR v.heartbeat_at < v.listening_since
             OR v.heartbeat_at < now() - make_interval(secs => p.stalling_interval_s))
             THEN 'were not heard of yet since they were taken up'
           WHEN v.check_failures > 0 THEN 'failed their checks'
           WHEN v.release_due_at IS NOT NULL THEN 'are being made ready for their next user'
           WHEN s.spent OR v.lease_count > 0 AND u.slots = 0
             AND v.busy_at + make_interval(secs => p.reuse_opportunity_s) <= now()
             THEN 'have served their time'
           ELSE '' END
  FROM vms v JOIN pools p ON p.id = v.pool_id
  LEFT JOIN LATERAL (
    SELECT coalesce(sum(x.slots), 0)::int AS slots, array_remove(array_agg(x.owner_id), NULL) AS holders
    FROM (
      SELECT a.cores AS slots, NULL::bigint AS owner_id FROM attempts a
      WHERE a.vm_id = v.id AND a.state IN ('PLACED', 'STARTED', 'EXITED')
      UNION ALL
      SELECT l.slots, l.owner_id FROM leases l
      WHERE l.vm_id = v.id AND NOT l.for_jobs AND l.released_at IS NULL) AS x) u ON true
  -- It was leased as often, or for as long, as its pool lets a VM be.
  CROSS JOIN LATERAL (
    SELECT coalesce(v.lease_count > 0 AND (
      v.lease_count > p.reuse_max_count
      OR v.leased_at + make_interval(secs => p.reuse_max_s) <= now()
      OR p.reuse_opportunity_s = 0 AND u.slots = 0), false) AS spent) s
  WHERE v.state = 'RUNNING' AND p.id = ANY (p_pools) AND (p_vms IS NULL OR v.id = ANY (p_vms))
$$;

-- Those of them that would do for an owner and sandbox, who may have a VM more of `p_more` alone. The
-- order is that of remuda.matching: the pools', then VMs that serve the owner, then clean ones.
CREATE FUNCTION remuda_lease_choices(p_pools bigint[], p_vms bigint[], p_owner bigint, p_sandbox text,
                                     p_slots int, p_more bigint[])
RETURNS TABLE (id bigint, slots int, place int, theirs boolean, mine boolean)
LANGUAGE sql STABLE AS $$
  SELECT x.id, x.slots, array_position(p_pools, x.pool_id), x.theirs, x.mine FROM (
    SELECT r.*,
      coalesce(CASE r.isolation
        WHEN 'shared' THEN p_owner = ANY (r.holders)
        WHEN 'owner' THEN r.bound_owner_id = p_owner
        WHEN 'sandbox' THEN r.bound_owner_id = p_owner AND r.bound_sandbox = p_sandbox
        ELSE false END, false) AS theirs,
      coalesce(CASE WHEN r.isolation <> 'shared' AND r.bound_owner_id IS NOT NULL
        THEN r.bound_owner_id = p_owner AND r.bound_sandbox = p_sandbox
        ELSE r.leased_owner_id = p_owner AND r.leased_sandbox = p_sandbox END, false) AS mine
    FROM remuda_lease_vms(p_pools, p_vms) r) AS x
  JOIN vms v ON v.id = x.id AND NOT v.draining
  JOIN pools p ON p.id = x.pool_id AND p.state IN (
    'SUBMITTED', 'PARTIALLY_DISPATCHED', 'FULLY_DISPATCHED', 'PARTIALLY_EXECUTING', 'FULLY_EXECUTING')
  WHERE x.unfit = ''
    AND CASE WHEN p_slots IS NULL THEN x.used_slots = 0 ELSE x.slots - x.used_slots >= p_slots END
    AND (x.theirs OR x.pool_id = ANY (p_more) AND (x.isolation = 'shared' OR x.bound_owner_id IS NULL))
$$;

-- Leases slots of a VM whose row is locked and has them free; from its first lease or job on a VM of
-- a pool that isolates serves that owner (and sandbox) alone.
CREATE FUNCTION remuda_lease_take(p_vm bigint, p_owner bigint, p_sandbox text, p_slots int,
                                  p_ttl_s float8, p_token uuid, p_task text, p_build text,
                                  p_labels jsonb, p_holder text)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE made bigint;
BEGIN
  UPDATE vms v SET lease_count = lease_count + 1, leased_at = coalesce(leased_at, now()),
    leased_owner_id = p_owner, leased_sandbox = p_sandbox,
    bound_owner_id = CASE WHEN p.isolation = 'shared' THEN bound_owner_id
                          ELSE coalesce(bound_owner_id, p_owner) END,
    bound_sandbox = CASE WHEN p.isolation = 'shared' OR bound_owner_id IS NOT NULL
                         THEN bound_sandbox ELSE p_sandbox END,
    draining = draining OR p.isolation = 'single_use'
  FROM pools p WHERE v.id = p_vm AND p.id = v.pool_id;
  INSERT INTO leases (vm_id, owner_id, sandbox, for_jobs, slots, expires_at, token, task_id, build_id,
                      labels, holder)
  VALUES (p_vm, p_owner, p_sandbox, false, p_slots, now() + make_interval(secs => p_ttl_s), p_token,
          p_task, p_build, p_labels, p_holder)
  RETURNING id INTO made;
  RETURN made;
END $$;

-- Serializes the acquisitions of an owner with a limit, until the transaction ends.
CREATE FUNCTION remuda_lock_owner(p_owner bigint) RETURNS void LANGUAGE sql AS $$
  SELECT pg_advisory_xact_lock(125534, (p_owner % 2147483647)::int + 1)
$$;

-- How many VMs serve each of the owners, in every state but gone, by pool.
CREATE FUNCTION remuda_vms_of(p_owners bigint[])
RETURNS TABLE (owner_id bigint, pool_id bigint, count int) LANGUAGE sql STABLE AS $$
  SELECT o.id, v.pool_id, count(*)::int FROM unnest(p_owners) AS o(id)
  JOIN vms v ON v.state <> 'HALTED' AND (v.bound_owner_id = o.id OR v.id IN (
    SELECT l.vm_id FROM leases l WHERE l.owner_id = o.id AND l.released_at IS NULL AND NOT l.for_jobs))
  GROUP BY 1, 2
$$;

-- A lease that is not over, with its VM.
CREATE FUNCTION remuda_lease_held(p_id bigint)
RETURNS TABLE (id bigint, vm_id bigint, token uuid, expires_at timestamptz, slots int, name text,
               address jsonb, private_ip text, public_ip text) LANGUAGE sql STABLE AS $$
  SELECT l.id, l.vm_id, l.token, l.expires_at, l.slots, v.name, v.address, v.private_ip, v.public_ip
  FROM leases l JOIN vms v ON v.id = l.vm_id WHERE l.id = p_id AND l.released_at IS NULL
$$;

-- Leases a VM that nobody has in hand, if there is one and nobody waits for its pools; returns the
-- lease, or no row. The token is the caller's own, so a call whose answer was lost can be repeated.
CREATE FUNCTION remuda_lease_acquire(p_pools bigint[], p_owner text, p_sandbox text, p_slots int,
                                     p_ttl_s float8, p_token uuid, p_task text, p_build text,
                                     p_labels jsonb, p_holder text)
RETURNS TABLE (id bigint, vm_id bigint, token uuid, expires_at timestamptz, slots int, name text,
               address jsonb, private_ip text, public_ip text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE o owners; found_id bigint; more bigint[] := p_pools; wanted int;
BEGIN
  SELECT l.id INTO found_id FROM leases l
  WHERE l.token = p_token AND l.released_at IS NULL AND NOT l.for_jobs;
  IF FOUND THEN RETURN QUERY SELECT * FROM remuda_lease_held(found_id); RETURN; END IF;
  IF EXISTS (SELECT FROM lease_requests q WHERE q.lease_id IS NULL AND NOT q.refused
             AND q.expires_at > now() AND q.pool_ids && p_pools) THEN
    RETURN;
  END IF;
  SELECT * INTO o FROM owners WHERE name = p_owner;
  IF NOT FOUND THEN
    INSERT INTO owners (name) VALUES (p_owner) ON CONFLICT DO NOTHING;
    SELECT * INTO o FROM owners WHERE name = p_owner;
  END IF;
  IF o.max_vms IS NOT NULL OR EXISTS (
      SELECT FROM pools p WHERE p.id = ANY (p_pools) AND p.max_vms_per_owner IS NOT NULL) THEN
    PERFORM remuda_lock_owner(o.id);
    -- A statement of its own: it sees what the lock's last holder did.
    SELECT coalesce(array_agg(p.id), '{}') INTO more FROM pools p
    WHERE p.id = ANY (p_pools)
      AND coalesce((SELECT sum(count) FROM remuda_vms_of(ARRAY[o.id])) < o.max_vms, o.max_vms > 0,
                   true)
      AND coalesce((SELECT count FROM remuda_vms_of(ARRAY[o.id]) c WHERE c.pool_id = p.id)
                     < p.max_vms_per_owner, p.max_vms_per_owner > 0, true);
  END IF;
  LOOP
    SELECT v.id INTO found_id
    FROM remuda_lease_choices(p_pools, NULL, o.id, p_sandbox, p_slots, more) c JOIN vms v ON v.id = c.id
    ORDER BY c.place, c.theirs DESC, c.mine DESC, c.id LIMIT 1 FOR NO KEY UPDATE OF v SKIP LOCKED;
    IF NOT FOUND THEN RETURN; END IF;
    -- Looked at again, now that the row is locked: a dispatcher may have been quicker. Then the next
    -- look at all VMs sees what it placed, too, and finds another one.
    SELECT coalesce(p_slots, c.slots) INTO wanted
    FROM remuda_lease_choices(p_pools, ARRAY[found_id], o.id, p_sandbox, p_slots, more) c;
    IF FOUND THEN
      found_id := remuda_lease_take(found_id, o.id, p_sandbox, wanted, p_ttl_s, p_token, p_task,
                                    p_build, p_labels, p_holder);
      RETURN QUERY SELECT * FROM remuda_lease_held(found_id);
      RETURN;
    END IF;
  END LOOP;
END $$;

-- Notes that VMs have room again; returns those that are not to be used again.
CREATE FUNCTION remuda_lease_freed(p_vms bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE over bigint[]; hooked boolean;
BEGIN
  WITH f AS (
    SELECT v.id, coalesce(cardinality(r.holders), 0) = 0 AS unused, v.draining OR coalesce(r.spent, false) AS over
    FROM vms v LEFT JOIN pools p ON p.id = v.pool_id
    LEFT JOIN LATERAL remuda_lease_vms(ARRAY[v.pool_id], ARRAY[v.id]) r ON true
    WHERE v.id = ANY (p_vms)
  ), u AS (
    UPDATE vms SET busy_at = now(), release_due_at = CASE
      WHEN vms.release_hook AND f.unused AND NOT f.over AND vms.state = 'RUNNING' THEN now()
      ELSE vms.release_due_at END
    FROM f WHERE vms.id = f.id RETURNING vms.id, f.over, vms.release_due_at
  ) SELECT array_agg(u.id) FILTER (WHERE u.over), bool_or(u.release_due_at IS NOT NULL)
    INTO over, hooked FROM u;
  PERFORM pg_notify('remuda_wake', 'dispatch');
  IF hooked THEN PERFORM pg_notify('remuda_wake', 'release'); END IF;
  RETURN over;
END $$;

-- Ends a lease by its token. `done`: it had not been over otherwise; `over`: its VM is not to be used
-- again; `waited`: somebody waits for a lease.
CREATE FUNCTION remuda_lease_release(p_id bigint, p_token uuid)
RETURNS TABLE (done boolean, over bigint[], waited boolean) LANGUAGE plpgsql AS $$
DECLARE vm bigint;
BEGIN
  SELECT l.vm_id INTO vm FROM leases l
  WHERE l.id = p_id AND l.token = p_token AND l.released_at IS NULL AND NOT l.for_jobs;
  IF FOUND THEN
    PERFORM FROM vms v WHERE v.id = vm FOR NO KEY UPDATE;  -- VMs before what is on them
    UPDATE leases l SET released_at = now(), ended = 'released'
    WHERE l.id = p_id AND l.released_at IS NULL;
  END IF;
  IF NOT FOUND THEN
    RETURN QUERY SELECT false, NULL::bigint[], false;
    RETURN;
  END IF;
  RETURN QUERY SELECT true, remuda_lease_freed(ARRAY[vm]), EXISTS (
    SELECT FROM lease_requests q WHERE q.lease_id IS NULL AND NOT q.refused AND q.expires_at > now());
END $$;
