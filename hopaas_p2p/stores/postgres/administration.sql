-- An administrator's statements, for users, tokens and the schema.

-- name: login
-- The database, and whether this login owns it, may create roles, and is a superuser.
SELECT datname, pg_has_role(current_user, datdba, 'USAGE'), rolcreaterole OR rolsuper, rolsuper FROM pg_database, pg_roles
WHERE datname = current_database() AND rolname = current_user

-- name: versioned_functions
-- The functions that peers may call, as a list for GRANT.
SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc
WHERE pronamespace = 'hopaas'::regnamespace AND proname ~ '_v[0-9]+$'

-- name: secure_functions
-- All functions look names up where no caller can put any. Those that peers may call run as the schema's owner, and wait
-- for no lock for longer than a call of a peer may take.
DO $$ DECLARE f record; BEGIN
    FOR f IN SELECT oid::regprocedure AS name, CASE WHEN proname ~ '_v[0-9]+$' THEN
        'SECURITY DEFINER SET lock_timeout = ''15s''' ELSE 'SECURITY INVOKER' END AS rights
        FROM pg_proc WHERE pronamespace = 'hopaas'::regnamespace
    LOOP EXECUTE 'ALTER FUNCTION ' || f.name || ' SET search_path = pg_catalog, pg_temp ' || f.rights; END LOOP;
END $$

-- name: costly_functions
-- Functions with which everybody can fill the server's disk (large objects, messages in the write-ahead log) or its
-- table of locks, as a list for REVOKE; NULL if nobody can any more.
SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
AND proname ~ '^(lo_creat|lo_create|lo_from_bytea|pg_logical_emit_message|pg_(try_)?advisory_(xact_)?lock(_shared)?)$'
AND has_function_privilege('public', oid, 'EXECUTE')

-- name: other_databases
-- Databases in which everybody may connect, where nothing of this is limited.
SELECT string_agg(datname, ', ' ORDER BY datname) FROM pg_database
WHERE datallowconn AND datname <> current_database() AND has_database_privilege('public', oid, 'CONNECT')

-- name: databases_with_settings
SELECT d.datname FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
JOIN pg_roles r ON r.oid = s.setrole WHERE r.rolname = %(role)s

-- name: changed_tokens
-- Roles with the settings of tokens, more or fewer: this login's, or all tokens' for those who may read the list.
SELECT r.rolname FROM pg_roles r LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid AND s.setdatabase <> 0
WHERE r.rolname ~ '\.[0-9a-f]{8}$' AND (r.rolname = session_user OR pg_has_role(r.oid, 'MEMBER'))
GROUP BY r.rolname, r.rolconfig
HAVING count(s.setrole) > 0 OR NOT (coalesce(r.rolconfig, '{}') @> %(expected)s AND coalesce(r.rolconfig, '{}') <@ %(expected)s)

-- name: role_is_powerful
-- Whether a role has powers over the server or the store; no row if there is no such role.
SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
    OR pg_has_role(rolname, %(owner)s, 'MEMBER') OR rolname = %(peers)s OR starts_with(rolname, 'pg_')
FROM pg_roles WHERE rolname = %(name)s

-- name: add_user
INSERT INTO hopaas.users (username, adopted, guest_of) VALUES (%(name)s, %(adopted)s, %(guest_of)s)
ON CONFLICT DO NOTHING

-- name: guest_of
-- The uuid of the one study of each guest.
SELECT guest_of FROM hopaas.users WHERE username = %(name)s

-- name: users
-- (name, created, number of tokens, adopted), by name.
SELECT u.username, u.created, count(t.role), u.adopted
FROM hopaas.users u LEFT JOIN hopaas.tokens t USING (username) GROUP BY u.username ORDER BY u.username

-- name: user
-- Whether a user was adopted, and its tokens; no row if there is no such user.
SELECT adopted, array(SELECT t.role FROM hopaas.tokens t WHERE t.username = u.username)
FROM hopaas.users u WHERE username = %(name)s

-- name: remove_user
WITH grants AS (DELETE FROM hopaas.grants WHERE username = %(name)s)
DELETE FROM hopaas.users WHERE username = %(name)s

-- name: add_token
INSERT INTO hopaas.tokens (role, username, label) VALUES (%(role)s, %(user)s, %(label)s)

-- name: tokens
-- Everything about the tokens of all users, or of one, except their secrets; oldest first.
SELECT t.role, t.username, t.label, t.created, nullif(r.rolvaliduntil, 'infinity'), t.last_used, r.rolconnlimit,
    (SELECT count(*) FROM pg_stat_activity a WHERE a.usename = t.role)
FROM hopaas.tokens t JOIN pg_roles r ON r.rolname = t.role
WHERE %(user)s::text IS NULL OR t.username = %(user)s ORDER BY t.created, t.role

-- name: tokens_called
-- The tokens with this name or label.
SELECT role FROM hopaas.tokens WHERE role = %(name)s OR label = %(name)s

-- name: now
-- The time by the server's clock, which is the one that will be used.
SELECT now()

-- name: end_sessions
-- Terminate the sessions of these roles; how many there were.
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = ANY (%(roles)s)

-- name: end_transactions
-- End the sessions of tokens that have kept something locked for longer than an honest call does.
SELECT count(*) FROM hopaas.end_transactions(interval '2 seconds')

-- name: prepared_by
-- (gid, owner, database) of the prepared transactions of these roles.
SELECT gid, owner, database FROM pg_prepared_xacts WHERE owner = ANY (%(roles)s)

-- name: databases_with
-- The databases in which something depends on one of these roles, and this one.
SELECT current_database() UNION
SELECT d.datname FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.refobjid
WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY (%(roles)s) AND d.datallowconn

-- name: user_of_token
SELECT username FROM hopaas.tokens WHERE role = %(role)s

-- name: remove_token
DELETE FROM hopaas.tokens WHERE role = %(role)s

-- name: restore_log
-- A log to restore commits into.
INSERT INTO hopaas.logs (uuid, created_by) VALUES (%(uuid)s, session_user) ON CONFLICT DO NOTHING

-- name: restore_commit
-- A commit as it was when it was backed up, and whose its peer is: the first author's. Another user may have named it in
-- a commit of its own, which a restored log holds without the nonce that it came with.
WITH peer AS (
    INSERT INTO hopaas.peers AS p (peer, author, since)
    SELECT split_part(%(nonce)s, ':', 1), %(author)s, %(at)s WHERE %(author)s <> ''
    ON CONFLICT (peer) DO UPDATE SET author = excluded.author, since = excluded.since WHERE excluded.since < p.since
)
INSERT INTO hopaas.commits (log, lsn, nonce, author, role, at, payload, before)
SELECT id, %(lsn)s, %(nonce)s, %(author)s, %(role)s, %(at)s, %(payload)s, %(before)s FROM hopaas.logs WHERE uuid = %(uuid)s
ON CONFLICT (log, lsn) DO NOTHING
