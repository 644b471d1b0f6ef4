-- The client's statements: one round trip each. The functions are described in schema.sql and artifacts.sql.
-- Bytes travel in base64, which adds a third; Postgres' own text form would double them. COPY, for the many bytes of a
-- join, sends them as they are.

-- name: exchange
-- Append a commit, read what is new, renew the beat.
SELECT lsn, encode(payload, 'base64'), author, role, at, before, head
FROM hopaas.exchange_v1(
  %(log)s, %(since)s, %(nonce)s, decode(%(payload)s, 'base64'), %(about)s, %(peer)s, %(beat)s, %(limit)s, %(chain)s
)

-- name: newest_snapshot
-- (lsn, base64) of the newest snapshot that this user may believe.
SELECT * FROM hopaas.newest_snapshot_v1(%(log)s)

-- name: put_snapshot
-- Keep a snapshot.
SELECT hopaas.put_snapshot_v1(%(log)s, %(lsn)s, decode(%(data)s, 'base64'), %(kept)s)

-- name: doubtful_snapshot
-- (lsn, author, base64) of the newest snapshot that this user may vouch for.
SELECT * FROM hopaas.doubtful_snapshot_v1(%(log)s, %(after)s, %(up_to)s)

-- name: judge_snapshot
-- Vouch for a snapshot of another author's, or deny that it is what the log says.
SELECT hopaas.judge_snapshot_v1(%(log)s, %(lsn)s, %(author)s, %(sum)s, %(same)s)

-- name: denied_snapshots
-- (lsn, author, who denied it) of snapshots.
SELECT * FROM hopaas.denied_snapshots_v1(%(log)s)

-- name: block_names
-- The blocks that are there.
SELECT name FROM hopaas.block_names_v1(%(log)s)

-- name: copy_blocks
-- (name, bytes) of some blocks.
COPY (SELECT * FROM hopaas.blocks_v1(%(log)s, %(names)s::text[])) TO STDOUT (FORMAT binary)

-- name: put_block
-- Keep a block.
SELECT hopaas.put_block_v1(%(log)s, %(block)s, decode(%(data)s, 'base64'))

-- name: destroy
-- Remove a log for good.
SELECT hopaas.destroy_v1(%(log)s)

-- name: beat
-- A sign of life outside an exchange.
SELECT hopaas.beat_v1(%(peer)s, %(value)s)

-- name: beats
-- The beats of some peers.
SELECT * FROM hopaas.beats_v1(%(peers)s::text[])

-- name: grant
-- Give a user a role in a study.
SELECT hopaas.grant_v1(%(log)s, %(user)s, %(role)s)

-- name: revoke
-- Take a user's role in a study away.
SELECT hopaas.revoke_v1(%(log)s, %(user)s)

-- name: shared
-- Which studies the user may see.
SELECT log FROM hopaas.shared_v1()

-- name: grants
-- Who may do what in a study.
SELECT * FROM hopaas.grants_v1(%(log)s)

-- name: unlock
-- End the sessions that hold others up: (login, seconds).
SELECT * FROM hopaas.unlock_v1(%(log)s)

-- name: version
-- Which version of the schema is installed.
SELECT hopaas.version_v1()

-- name: begin_artifact
-- Begin to store a file.
SELECT hopaas.begin_artifact_v1(%(key)s, %(size)s, %(upload)s)

-- name: put_part
-- Store a part of it.
SELECT hopaas.put_part_v1(%(upload)s, %(part)s, %(data)s)

-- name: finish_artifact
-- Make it visible.
SELECT hopaas.finish_artifact_v1(%(upload)s)

-- name: read_part
-- (id, size, base64) of a part of a file.
SELECT * FROM hopaas.read_part_v1(%(key)s, %(id)s, %(part)s)

-- name: remove_artifact
-- Remove a file.
SELECT hopaas.remove_artifact_v1(%(key)s)

-- name: artifact_keys
-- The keys of files with a prefix.
SELECT * FROM hopaas.artifact_keys_v1(%(prefix)s)
