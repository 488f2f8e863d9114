"""What owners have used: slot-seconds, of which half are forgotten after each half-life.

The past is added up by `fold`, from attempts that ended since it last was; what runs is looked at when
it is asked for. So recording an end costs nothing more.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from remuda.fairness import UNKNOWN_WALL_S, FairShares, Share
from remuda.models.database import rows

LAG_S = 2.0  # ends are recorded within this time, but for VMs that do not answer
NAME = "usage"  # the row of `sweeps` that tells up to when ends are added up

# An attempt of w seconds that ends now is worth the integral over its time of what is still
# remembered of each moment: h/ln 2 * (1 - 2^(-w/h)), a little less than w.
_HALF_LIFE = "CAST(:half_life AS float8)"
_WORTH = f"({_HALF_LIFE} / ln(2.0::float8) * (1 - power(2.0::float8, -({{wall}}) / {_HALF_LIFE})))"

# Who adds up at the same time finds the row locked and leaves it.
_CLAIM = """
    SELECT last_run_at AS begin, now() - make_interval(secs => :lag) AS until FROM sweeps
    WHERE name = :name AND last_run_at <= now() - make_interval(secs => :lag + :every)
    FOR UPDATE SKIP LOCKED
"""

_FOLD = text(f"""
    WITH ended AS (
      SELECT l.owner_id, sum(a.cores * {
    _WORTH.format(wall="extract(epoch FROM a.ended_at - a.started_at)::float8")
} * power(2.0::float8,
        -extract(epoch FROM CAST(:until AS timestamptz) - a.ended_at)::float8
        / CAST(:half_life AS float8))) AS slot_s
      FROM attempts a JOIN leases l ON l.id = a.lease_id
      WHERE a.ended_at > :begin AND a.ended_at <= :until AND a.started_at < a.ended_at
      GROUP BY 1
    )
    INSERT INTO usages AS u (owner_id, slot_s, until)
    SELECT owner_id, slot_s, :until FROM ended
    ON CONFLICT (owner_id) DO UPDATE SET until = excluded.until, slot_s = excluded.slot_s
      + u.slot_s * power(2.0::float8, -least(1000, greatest(0,
          extract(epoch FROM excluded.until - u.until)::float8 / CAST(:half_life AS float8))))
""")


_BEGIN = text("""
    INSERT INTO sweeps (name, last_run_at, since)
    VALUES (:name, now() - make_interval(secs => :lag), now()) ON CONFLICT DO NOTHING
""")
_DONE = text("UPDATE sweeps SET last_run_at = :until WHERE name = :name")


def fold(connection: Connection, *, half_life_s: float, every_s: float = 0.0) -> bool:
    """Add up what ended since this was last done, if that is `every_s` seconds ago or more.

    What is recorded more than LAG_S after its end (its VM did not answer for a while) is not counted.
    Returns whether it was done; it is not while somebody else does it.
    """
    claimed = rows(connection, _CLAIM, name=NAME, lag=LAG_S, every=every_s)
    if not claimed:
        connection.execute(_BEGIN, {"name": NAME, "lag": LAG_S})
        return False
    period = {"begin": claimed[0]["begin"], "until": claimed[0]["until"]}
    connection.execute(_FOLD, {**period, "half_life": half_life_s})
    connection.execute(_DONE, {"name": NAME, "until": period["until"]})
    return True


# What is on machines counts as what it is expected to take, or has taken if that is more.
_SHARES = f"""
    SELECT o.id, o.weight, o.group_id,
           coalesce(u.slot_s * power(2.0::float8, -least(1000, greatest(0,
             extract(epoch FROM now() - u.until)::float8 / CAST(:half_life AS float8)))), 0)
           + coalesce(l.slot_s, 0) AS usage_s
    FROM owners o LEFT JOIN usages u ON u.owner_id = o.id LEFT JOIN (
      SELECT l.owner_id, sum(a.cores * {
    _WORTH.format(
        wall=f'''greatest(
        coalesce(a.expected_wall_s, {UNKNOWN_WALL_S}),
        coalesce(extract(epoch FROM now() - a.started_at)::float8, 0))'''
    )
}) AS slot_s
      FROM attempts a JOIN leases l ON l.id = a.lease_id
      WHERE a.state IN ('PLACED', 'STARTED') GROUP BY 1) AS l ON l.owner_id = o.id
"""


def shares(connection: Connection, *, half_life_s: float) -> FairShares:
    """Return the weights of all owners and groups, and what they used by now."""
    owners: dict[int, Share] = {}
    group_of: dict[int, int] = {}
    of_groups: dict[int, float] = {}
    for row in rows(connection, _SHARES, half_life=half_life_s):
        owners[row["id"]] = Share(row["weight"], row["usage_s"])
        party = row["group_id"] or row["id"]
        of_groups[party] = of_groups.get(party, 0.0) + row["usage_s"]
        if row["group_id"] is not None:
            group_of[row["id"]] = row["group_id"]
    leaders = set(group_of.values())
    groups = {g: Share(owners[g].weight, of_groups[g]) for g in leaders}
    # What a group submits itself competes with its members.
    return FairShares(owners, groups, {**group_of, **{g: g for g in leaders}})
