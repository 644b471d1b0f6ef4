-- The schema `hopaas`: one store in one database. Applied by `hopaas-p2p admin init`, as the schema's owner.
--
-- Peers have no rights on tables. They can only call the functions whose names end in _v1, _v2 and so on, which run with
-- the rights of the owner and check the caller. The meaning of a function never changes; a new meaning gets a new name.
-- `install` sets the rights and settings of all functions. Of the parts marked below, a migration runs once, in order, and
-- the functions are replaced every time. Until 0.1 is released there is one migration, whose number rises when it changes.
--
-- Our error codes, which the client turns into its errors:
--   ZH401 not allowed   ZH402 not to this user, whatever it is granted   ZH403 this login has ended
--   ZH404 no such thing   ZH405 a file of no study   ZH406 an upload failed   ZH409 the log contradicts the peer
--   ZH410 deleted   ZH412 a setting of the server or session forbids it   ZH413 too large   ZH503 a read-only replica

-- == migration 10 ==

CREATE TABLE hopaas.schema_version (
    version integer PRIMARY KEY,
    applied timestamptz NOT NULL DEFAULT now()
);

-- One row per log: the studies, and the catalog. A deleted study's row stays, so that its uuid is never used again.
CREATE TABLE hopaas.logs (
    id bigserial PRIMARY KEY,
    uuid text NOT NULL UNIQUE CHECK (length(uuid) BETWEEN 1 AND 64),
    created timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL,
    deleted timestamptz
);

-- A caller in a log: the log, the user, and the user's role there. Log and role are NULL if no log has that name.
CREATE TYPE hopaas.entry AS (log bigint, username text, role text);

CREATE TABLE hopaas.commits (
    log bigint NOT NULL,
    lsn bigint NOT NULL CHECK (lsn > 0),
    nonce text NOT NULL CHECK (length(nonce) BETWEEN 1 AND 128),
    author text NOT NULL,
    role text NOT NULL,
    at bigint NOT NULL,
    payload bytea NOT NULL CHECK (octet_length(payload) <= 4194304),
    before bigint,  -- the sum of the log before it, see core/codec.py: below 2^42
    PRIMARY KEY (log, lsn),
    UNIQUE (log, nonce, author)
);

-- A worker's snapshot is doubtful until another author has compared it with the log; see newest_snapshot_v1.
CREATE TABLE hopaas.snapshots (
    log bigint NOT NULL,
    lsn bigint NOT NULL,
    author text NOT NULL,
    role text NOT NULL,
    voucher text,
    deniers text[] NOT NULL DEFAULT '{}',
    data bytea NOT NULL,
    PRIMARY KEY (log, lsn, author)
);
ALTER TABLE hopaas.snapshots ALTER COLUMN data SET STORAGE EXTERNAL;  -- compressed already

-- Finished trials, which snapshots share. Each block is stored once, under a name that ends in a hash of its bytes.
CREATE TABLE hopaas.blocks (
    log bigint NOT NULL,
    name text NOT NULL CHECK (length(name) BETWEEN 33 AND 64),
    data bytea NOT NULL,
    PRIMARY KEY (log, name)
);
ALTER TABLE hopaas.blocks ALTER COLUMN data SET STORAGE EXTERNAL;  -- compressed already

-- Only a change of a beat matters, so losing all of them in a crash of the server does no harm.
CREATE UNLOGGED TABLE hopaas.beats (
    peer text PRIMARY KEY CHECK (length(peer) BETWEEN 1 AND 64),
    value text NOT NULL CHECK (length(value) <= 128),
    author text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE hopaas.grants (
    log bigint NOT NULL,
    username text NOT NULL,
    role text NOT NULL CHECK (role IN ('viewer', 'worker', 'owner')),
    granted timestamptz NOT NULL DEFAULT now(),
    granted_by text NOT NULL,
    PRIMARY KEY (log, username)
);

-- Users. `guest_of` is the uuid of the one study that a guest may have a grant for; NULL for other users.
CREATE TABLE hopaas.users (
    username text PRIMARY KEY,
    guest_of text,
    created timestamptz NOT NULL DEFAULT now()
);

-- A guest gets a grant only for the study that it was invited to, so it cannot create studies either.
CREATE FUNCTION hopaas.check_guest() RETURNS trigger LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM 1 FROM hopaas.users u, hopaas.logs l
    WHERE u.username = NEW.username AND l.id = NEW.log AND u.guest_of <> l.uuid;
    IF FOUND THEN
        RAISE EXCEPTION 'user % is the guest of one study: it can neither create nor delete studies, nor take part in '
            'another', NEW.username USING ERRCODE = 'ZH402';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER check_guest BEFORE INSERT OR UPDATE ON hopaas.grants FOR EACH ROW EXECUTE FUNCTION hopaas.check_guest();

-- The login role and the user of each token. Postgres itself keeps the secret (as a SCRAM verifier) and the expiry.
CREATE TABLE hopaas.tokens (
    role text PRIMARY KEY,
    username text NOT NULL REFERENCES hopaas.users ON DELETE CASCADE,
    label text NOT NULL,
    created timestamptz NOT NULL DEFAULT now(),
    last_used timestamptz
);

INSERT INTO hopaas.logs (uuid, created_by) VALUES ('catalog', session_user);

-- The user that each peer belongs to, who is the author of its first commit to any log. Others learn a peer's name only
-- from its commits, so nobody can claim it first. Unlike beats, this table survives a crash of the server. `since` is the
-- time of that commit, like commits.at, so that the first author counts in whatever order logs are restored.
CREATE TABLE hopaas.peers (
    peer text PRIMARY KEY CHECK (length(peer) BETWEEN 1 AND 64),
    author text NOT NULL,
    since bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
);

-- == functions ==

-- The version of this file that is installed.
CREATE OR REPLACE FUNCTION hopaas.version_v1() RETURNS integer
LANGUAGE sql STABLE AS $$ SELECT max(version) FROM hopaas.schema_version $$;

-- The user of this session: the one that its token belongs to, or the login itself. Every call but version_v1 runs this
-- function first, so a call fails before it writes anything that could be lost, or that others would not see. Postgres
-- checks an expiry only at the login, and a peer's session may last for weeks. (now() does not change within a
-- transaction.)
CREATE OR REPLACE FUNCTION hopaas.caller() RETURNS text LANGUAGE plpgsql AS $$
DECLARE v_token hopaas.tokens;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this server is a read-only replica' USING ERRCODE = 'ZH503';
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        RAISE EXCEPTION 'synchronous_commit is off here, so an acknowledged result could be lost'
            USING ERRCODE = 'ZH412';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'default_transaction_isolation is %, and has to be read committed',
            current_setting('transaction_isolation') USING ERRCODE = 'ZH412';
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = session_user AND rolvaliduntil <= clock_timestamp()) THEN
        RAISE EXCEPTION 'this token has expired' USING ERRCODE = 'ZH403';
    END IF;
    SELECT * INTO v_token FROM hopaas.tokens WHERE role = session_user;
    IF NOT FOUND THEN
        RETURN session_user;
    END IF;
    IF NOT pg_has_role(session_user, v_token.username, 'MEMBER') THEN
        RAISE EXCEPTION 'this token no longer belongs to its user' USING ERRCODE = 'ZH403';
    END IF;
    IF v_token.last_used IS NULL OR v_token.last_used < now() - interval '1 minute' THEN
        PERFORM 1 FROM hopaas.tokens WHERE role = session_user FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE hopaas.tokens SET last_used = now() WHERE role = session_user;
        END IF;
    END IF;
    RETURN v_token.username;
END $$;

-- The user's role in a log: owner, worker, viewer, or NULL. All users except guests may write to the catalog. A login that
-- is a member of the schema's owner role is an administrator's, and has the role of an owner in every log.
CREATE OR REPLACE FUNCTION hopaas.role_in(p_log bigint, p_uuid text, p_user text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE v_role text;
BEGIN
    SELECT role INTO v_role FROM hopaas.grants WHERE log = p_log AND username = p_user;
    RETURN CASE WHEN v_role = 'owner' OR pg_has_role(session_user, current_user, 'MEMBER') THEN 'owner'
                WHEN v_role IS NOT NULL OR p_uuid <> 'catalog' THEN v_role
                WHEN EXISTS (SELECT FROM hopaas.users WHERE username = p_user AND guest_of IS NOT NULL) THEN 'viewer'
                ELSE 'worker' END;
END $$;

-- The caller in the log with this uuid. Fails if the caller's role there is below p_least.
CREATE OR REPLACE FUNCTION hopaas.entered(p_uuid text, p_least text) RETURNS hopaas.entry LANGUAGE plpgsql AS $$
DECLARE
    v hopaas.entry;
    v_deleted timestamptz;
BEGIN
    v.username := hopaas.caller();
    SELECT id, deleted INTO v.log, v_deleted FROM hopaas.logs WHERE uuid = p_uuid;
    IF NOT FOUND THEN
        RETURN v;
    END IF;
    IF v_deleted IS NOT NULL THEN
        RAISE EXCEPTION 'this study was deleted' USING ERRCODE = 'ZH410';
    END IF;
    v.role := hopaas.role_in(v.log, p_uuid, v.username);
    IF v.role IS NULL THEN
        RAISE EXCEPTION 'user % has no grant for this study', v.username USING ERRCODE = 'ZH401';
    END IF;
    IF array_position(ARRAY['viewer', 'worker', 'owner'], v.role)
       < array_position(ARRAY['viewer', 'worker', 'owner'], p_least) THEN
        IF p_uuid = 'catalog' AND v.role = 'viewer' THEN
            RAISE EXCEPTION 'user % is the guest of one study: it can neither create nor delete studies, nor take part '
                'in another', v.username USING ERRCODE = 'ZH402';
        END IF;
        RAISE EXCEPTION 'user % is only a % of this study, and this takes % %', v.username, v.role,
            CASE p_least WHEN 'owner' THEN 'an' ELSE 'at least a' END, p_least USING ERRCODE = 'ZH401';
    END IF;
    RETURN v;
END $$;

-- Fail if the peer is another user's. A peer under whose name nobody has written is this user's from now on.
CREATE OR REPLACE FUNCTION hopaas.check_peer(p_peer text, p_user text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM hopaas.peers WHERE peer = p_peer AND author = p_user) THEN
        INSERT INTO hopaas.peers (peer, author) VALUES (p_peer, p_user) ON CONFLICT DO NOTHING;
        IF EXISTS (SELECT FROM hopaas.peers WHERE peer = p_peer AND author <> p_user) THEN
            RAISE EXCEPTION 'user % does not write for the peer %, which is another user''s', p_user, p_peer
                USING ERRCODE = 'ZH402';
        END IF;
    END IF;
END $$;

-- Overwrite a peer's beat, unless it is another user's. Until its first commit, a peer belongs to the user that beats
-- first, and then to that commit's author. Only a study's owners may send the beat of its rescue; see core/names.py.
CREATE OR REPLACE FUNCTION hopaas.renew_beat(p_peer text, p_value text, p_user text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO hopaas.beats AS b (peer, value, author) SELECT p_peer, p_value, p_user
    WHERE CASE WHEN p_peer LIKE 'rescue-%' THEN EXISTS (
            SELECT FROM hopaas.logs l
            WHERE l.uuid = substr(p_peer, 8) AND hopaas.role_in(l.id, l.uuid, p_user) = 'owner')
        ELSE NOT EXISTS (SELECT FROM hopaas.peers p WHERE p.peer = p_peer AND p.author <> p_user) END
    ON CONFLICT (peer) DO UPDATE SET value = excluded.value, author = excluded.author, at = excluded.at
    WHERE b.author = excluded.author OR p_peer LIKE 'rescue-%'
        OR EXISTS (SELECT FROM hopaas.peers p WHERE p.peer = p_peer AND p.author = p_user)
$$;

-- The sum of a log up to this lsn, computed from the checksum of the commit there, its first four bytes (little-endian);
-- see core/codec.py. NULL if the log has no such commit.
CREATE OR REPLACE FUNCTION hopaas.chain_at(p_log bigint, p_lsn bigint) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT CASE p_lsn WHEN 0 THEN 0 ELSE (
        SELECT (c.before * 1000003 + get_byte(h, 0) + (get_byte(h, 1) << 8) + (get_byte(h, 2) << 16)
                + (get_byte(h, 3)::bigint << 24)) % 4398046511093
        FROM hopaas.commits c, LATERAL substr(substr(c.payload, 1, 4) || '\x00000000'::bytea, 1, 4) h
        WHERE c.log = p_log AND c.lsn = p_lsn
    ) END
$$;

-- The one call to a log: append a commit (p_payload, unless NULL), renew a beat (unless NULL), and return the commits
-- after p_since: at most 10,000, and up to about p_limit bytes (at most 8 MiB, with a commit or a beat 128 KiB). `head` is
-- the log's last lsn. p_about is the uuid of the study that a commit to the catalog concerns; if the user owns that study,
-- the commit is stamped owner:<uuid>. p_chain is the sum of the log up to p_since as the peer has read it, or NULL; if the
-- log has another sum, the call fails. `before` is the sum before a commit. Bytes that go to a client are in base64, which
-- adds a third; Postgres' own text form would double them.
--
-- An append locks the row of the log, so lsn order is commit order. An advisory lock would not do, because any login could
-- take it to stop the studies of others. The lock is held until the reply has been sent, so with a commit or a beat a reply
-- is short beyond its first entry; the rest takes another call, without a lock. Otherwise, one peer far behind on a slow
-- link would block all others, or `unlock_v1` would end its session.
CREATE OR REPLACE FUNCTION hopaas.exchange_v1(
    p_log text, p_since bigint, p_nonce text, p_payload bytea, p_about text, p_peer text, p_beat text, p_limit integer,
    p_chain bigint DEFAULT NULL
) RETURNS TABLE (lsn bigint, payload text, author text, role text, at bigint, before bigint, head bigint)
LANGUAGE plpgsql AS $$
DECLARE
    v hopaas.entry := hopaas.entered(p_log, CASE WHEN p_payload IS NULL THEN 'viewer' ELSE 'worker' END);
    v_head bigint;
    v_about bigint;
    v_chain bigint;
BEGIN
    IF p_payload IS NOT NULL AND p_nonce LIKE '_%:%' THEN
        PERFORM hopaas.check_peer(split_part(p_nonce, ':', 1), v.username);
    END IF;
    IF p_peer IS NOT NULL THEN
        PERFORM hopaas.renew_beat(p_peer, p_beat, v.username);
    END IF;
    IF v.log IS NULL THEN
        IF p_since > 0 THEN
            RAISE EXCEPTION 'the log is gone, although a peer has seen % of its commits', p_since USING ERRCODE = 'ZH409';
        END IF;
        IF p_payload IS NULL THEN
            RETURN;
        END IF;
        PERFORM hopaas.entered('catalog', 'worker');  -- so that a guest leaves no trace of a study that it may not create
        INSERT INTO hopaas.logs (uuid, created_by) VALUES (p_log, v.username) ON CONFLICT DO NOTHING
        RETURNING id INTO v.log;
        IF FOUND THEN
            INSERT INTO hopaas.grants (log, username, role, granted_by) VALUES (v.log, v.username, 'owner', v.username);
            v.role := 'owner';
        ELSE
            v := hopaas.entered(p_log, 'worker');  -- another session was quicker
        END IF;
    END IF;
    IF p_payload IS NOT NULL THEN
        PERFORM 1 FROM hopaas.logs l WHERE l.id = v.log AND l.deleted IS NULL FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'this study was deleted' USING ERRCODE = 'ZH410';
        END IF;
    END IF;
    SELECT coalesce(max(c.lsn), 0) INTO v_head FROM hopaas.commits c WHERE c.log = v.log;
    IF v_head < p_since THEN
        RAISE EXCEPTION 'the log ends at commit % with the sum %, and a peer has seen commit % with the sum %', v_head,
            lpad(to_hex(hopaas.chain_at(v.log, v_head)), 11, '0'), p_since,
            coalesce(lpad(to_hex(p_chain), 11, '0'), 'unknown') USING ERRCODE = 'ZH409';
    END IF;
    IF p_payload IS NOT NULL AND NOT EXISTS (
        SELECT FROM hopaas.commits c WHERE c.log = v.log AND c.nonce = p_nonce AND c.author = v.username
    ) THEN
        v.role := hopaas.role_in(v.log, p_log, v.username);  -- it may have changed while this waited for the lock
        IF p_log = 'catalog' AND v.role <> 'owner' AND p_about IS NOT NULL THEN
            SELECT l.id INTO v_about FROM hopaas.logs l WHERE l.uuid = p_about;
            IF hopaas.role_in(v_about, p_about, v.username) = 'owner' THEN
                v.role := 'owner:' || p_about;
            END IF;
        END IF;
        v_chain := hopaas.chain_at(v.log, p_since);
        IF v_chain <> p_chain THEN
            RAISE EXCEPTION 'this log has two histories: up to commit % it has the sum %, and a peer has read the sum %',
                p_since, lpad(to_hex(v_chain), 11, '0'), lpad(to_hex(p_chain), 11, '0') USING ERRCODE = 'ZH409';
        END IF;
        IF v_head IS DISTINCT FROM p_since THEN  -- NULL for p_since is nobody's lsn
            v_chain := hopaas.chain_at(v.log, v_head);
        END IF;
        v_head := v_head + 1;
        INSERT INTO hopaas.commits (log, lsn, nonce, author, role, at, payload, before)
        VALUES (v.log, v_head, p_nonce, v.username, v.role,
                (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, p_payload, v_chain);
    END IF;
    IF v_head > p_since THEN
        RETURN QUERY
            SELECT w.lsn, encode(w.payload, 'base64'), w.author, w.role, w.at, w.before, v_head
            FROM (
                SELECT c.*, sum(octet_length(c.payload) + 64) OVER (ORDER BY c.lsn) - octet_length(c.payload) AS size
                FROM hopaas.commits c
                WHERE c.log = v.log AND c.lsn > p_since AND c.lsn <= p_since + 10000
            ) w
            WHERE w.size <= least(greatest(p_limit, 64), CASE WHEN p_payload IS NULL AND p_peer IS NULL THEN 8388608
                                                              ELSE 131072 END)
            ORDER BY w.lsn;
    END IF;
END $$;

-- The newest snapshot of a log that the caller may trust, or nothing. A peer that reads a snapshot does not check it
-- against the log, so its own user or an owner must have written the snapshot, or another author must vouch for it.
CREATE OR REPLACE FUNCTION hopaas.newest_snapshot_v1(p_log text) RETURNS TABLE (lsn bigint, data text)
LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, 'viewer');
BEGIN
    RETURN QUERY
        SELECT s.lsn, encode(s.data, 'base64') FROM hopaas.snapshots s
        WHERE s.log = v.log AND (s.author = v.username OR s.role = 'owner' OR s.voucher IS NOT NULL)
        ORDER BY s.lsn DESC LIMIT 1;
END $$;

-- Keep a snapshot, and remove beats that are a month old. Of the snapshots that everybody trusts, the newest p_kept (at
-- most three) stay, and as many of each author's doubtful ones, so that no author displaces another's. Workers may write
-- to the catalog, but only an owner may write its snapshot, because a forged one could give a known name to another study.
CREATE OR REPLACE FUNCTION hopaas.put_snapshot_v1(p_log text, p_lsn bigint, p_data bytea, p_kept integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, CASE p_log WHEN 'catalog' THEN 'owner' ELSE 'worker' END);
BEGIN
    IF octet_length(p_data) > 268435456 THEN
        RAISE EXCEPTION 'a snapshot of % bytes is too large', octet_length(p_data) USING ERRCODE = 'ZH401';
    END IF;
    PERFORM 1 FROM hopaas.commits WHERE log = v.log AND lsn = p_lsn;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no commit % to make a snapshot of', p_lsn USING ERRCODE = 'ZH409';
    END IF;
    INSERT INTO hopaas.snapshots (log, lsn, author, role, data)
    VALUES (v.log, p_lsn, v.username, v.role, p_data) ON CONFLICT DO NOTHING;
    DELETE FROM hopaas.snapshots s USING (
        SELECT o.lsn, o.author, row_number() OVER (
            PARTITION BY CASE WHEN o.role <> 'owner' AND o.voucher IS NULL THEN o.author END ORDER BY o.lsn DESC
        ) AS place
        FROM hopaas.snapshots o WHERE o.log = v.log
    ) old
    WHERE s.log = v.log AND s.lsn = old.lsn AND s.author = old.author
        AND old.place > least(greatest(p_kept, 1), 3);
    DELETE FROM hopaas.beats WHERE peer IN (
        SELECT peer FROM hopaas.beats WHERE at < now() - interval '30 days' FOR UPDATE SKIP LOCKED
    );
END $$;

-- The newest doubtful snapshot in (p_after, p_up_to] that the caller may judge, if no newer one is trusted by everybody.
CREATE OR REPLACE FUNCTION hopaas.doubtful_snapshot_v1(p_log text, p_after bigint, p_up_to bigint)
RETURNS TABLE (lsn bigint, author text, data text) LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, 'worker');
BEGIN
    RETURN QUERY
        SELECT s.lsn, s.author, encode(s.data, 'base64') FROM hopaas.snapshots s
        WHERE s.log = v.log AND s.author <> v.username AND NOT v.username = ANY (s.deniers) AND s.lsn <= p_up_to
            AND s.lsn > greatest(p_after, (
                SELECT max(o.lsn) FROM hopaas.snapshots o
                WHERE o.log = v.log AND (o.role = 'owner' OR o.voucher IS NOT NULL)
            ))
        ORDER BY s.lsn DESC LIMIT 1;
END $$;

-- Vouch for another author's snapshot, or deny that it agrees with the log; p_sum is the SHA-256 of the compared bytes.
CREATE OR REPLACE FUNCTION hopaas.judge_snapshot_v1(
    p_log text, p_lsn bigint, p_author text, p_sum text, p_same boolean
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, 'worker');  -- even if there is nothing to judge
BEGIN
    UPDATE hopaas.snapshots s
    SET voucher = CASE WHEN p_same THEN v.username ELSE s.voucher END,
        deniers = CASE WHEN p_same THEN s.deniers ELSE s.deniers || v.username END
    WHERE s.log = v.log AND s.lsn = p_lsn AND s.author = p_author AND s.author <> v.username
        AND s.voucher IS NULL AND NOT v.username = ANY (s.deniers) AND encode(sha256(s.data), 'hex') = p_sum;
END $$;

-- The snapshots that at least one author has denied.
CREATE OR REPLACE FUNCTION hopaas.denied_snapshots_v1(p_log text)
RETURNS TABLE (lsn bigint, author text, deniers text[]) LANGUAGE sql AS $$
    SELECT hopaas.entered(p_log, 'viewer');
    SELECT s.lsn, s.author, s.deniers FROM hopaas.snapshots s JOIN hopaas.logs l ON l.id = s.log
    WHERE l.uuid = p_log AND s.deniers <> '{}' ORDER BY s.lsn
$$;

-- The names of a log's blocks.
CREATE OR REPLACE FUNCTION hopaas.block_names_v1(p_log text) RETURNS TABLE (name text) LANGUAGE sql AS $$
    SELECT hopaas.entered(p_log, 'viewer');
    SELECT b.name FROM hopaas.blocks b JOIN hopaas.logs l ON l.id = b.log WHERE l.uuid = p_log
$$;

-- Those of these blocks that exist, for COPY in the binary format, so that the server need not convert them.
CREATE OR REPLACE FUNCTION hopaas.blocks_v1(p_log text, p_names text[]) RETURNS TABLE (name text, data bytea)
LANGUAGE sql AS $$
    SELECT hopaas.entered(p_log, 'viewer');
    SELECT b.name, b.data FROM hopaas.blocks b JOIN hopaas.logs l ON l.id = b.log
    WHERE l.uuid = p_log AND b.name = ANY (p_names)
$$;

-- Keep a block. A block's name contains its hash, so nobody can put other bytes under a name that honest peers will use.
CREATE OR REPLACE FUNCTION hopaas.put_block_v1(p_log text, p_name text, p_data bytea) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, 'worker');
BEGIN
    IF octet_length(p_data) > 268435456 THEN
        RAISE EXCEPTION 'a block of % bytes is too large', octet_length(p_data) USING ERRCODE = 'ZH401';
    END IF;
    IF v.log IS NULL OR right(p_name, 32) <> left(encode(sha256(p_data), 'hex'), 32) THEN
        RAISE EXCEPTION 'this is not the block %', p_name USING ERRCODE = 'ZH409';
    END IF;
    INSERT INTO hopaas.blocks (log, name, data) VALUES (v.log, p_name, p_data) ON CONFLICT DO NOTHING;
END $$;

-- Remove a log for good. Its uuid stays taken, so that a peer that still uses the log learns that it is gone.
CREATE OR REPLACE FUNCTION hopaas.destroy_v1(p_log text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry;
BEGIN
    PERFORM hopaas.caller();
    IF NOT EXISTS (SELECT FROM hopaas.logs WHERE uuid = p_log AND deleted IS NULL) THEN
        RETURN;
    END IF;
    v := hopaas.entered(p_log, 'owner');
    IF p_log = 'catalog' THEN
        RAISE EXCEPTION 'the catalog cannot be destroyed' USING ERRCODE = 'ZH401';
    END IF;
    UPDATE hopaas.logs SET deleted = now() WHERE id = v.log;
    DELETE FROM hopaas.commits WHERE log = v.log;
    DELETE FROM hopaas.snapshots WHERE log = v.log;
    DELETE FROM hopaas.blocks WHERE log = v.log;
    DELETE FROM hopaas.artifacts WHERE log = v.log;
    DELETE FROM hopaas.grants WHERE log = v.log;
END $$;

-- Renew a beat outside an exchange.
CREATE OR REPLACE FUNCTION hopaas.beat_v1(p_peer text, p_value text) RETURNS void
LANGUAGE sql AS $$ SELECT hopaas.renew_beat(p_peer, p_value, hopaas.caller()) $$;

-- The beats of these peers, if they have any. Peers' names are 96 random bits, known only from studies' logs.
CREATE OR REPLACE FUNCTION hopaas.beats_v1(p_peers text[]) RETURNS TABLE (peer text, value text) LANGUAGE sql AS $$
    SELECT hopaas.caller();
    SELECT b.peer, b.value FROM hopaas.beats b WHERE b.peer = ANY (p_peers)
$$;

-- Let a user view a study, work in it, or own it. Only the study's owners may call this.
CREATE OR REPLACE FUNCTION hopaas.grant_v1(p_log text, p_user text, p_role text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, 'owner');
BEGIN
    PERFORM 1 FROM hopaas.users WHERE username = p_user;
    IF v.log IS NULL OR NOT FOUND THEN
        RAISE EXCEPTION 'there is no user %', p_user USING ERRCODE = 'ZH404';
    END IF;
    PERFORM hopaas.keep_an_owner(v.log, p_user, p_role);
    INSERT INTO hopaas.grants (log, username, role, granted_by) VALUES (v.log, p_user, p_role, v.username)
    ON CONFLICT (log, username) DO UPDATE
        SET role = excluded.role, granted = excluded.granted, granted_by = excluded.granted_by;
END $$;

-- Return the sessions whose open transaction may block others, and end those in which it has been open for p_age.
CREATE OR REPLACE FUNCTION hopaas.end_transactions(p_age interval)
RETURNS TABLE (login text, seconds integer, ended boolean)
LANGUAGE sql AS $$
    WITH holders AS MATERIALIZED (
        SELECT a.pid, a.usename::text AS login, extract(epoch FROM clock_timestamp() - a.xact_start)::integer AS seconds,
            a.xact_start <= clock_timestamp() - p_age AS long
        FROM pg_stat_activity a
        WHERE a.pid <> pg_backend_pid() AND pg_has_role(a.usesysid, 'USAGE')
          AND EXISTS (  -- a session that reads a snapshot for minutes may hold its token's row, but nobody waits for that
              SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                  JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
              WHERE l.pid = a.pid AND l.mode IN ('RowShareLock', 'RowExclusiveLock')
                AND c.relnamespace = 'hopaas'::regnamespace AND c.relkind = 'r' AND c.relname <> 'tokens'
          )
    )
    SELECT login, seconds, long AND pg_terminate_backend(pid) FROM holders
$$;

-- End sessions that block others with an open transaction; return all sessions that could block others, with the age of
-- each transaction. No call of a peer waits for a lock for more than 15 s. An owner may end transactions that have lasted
-- 20 s. Any worker may end those that have lasted two minutes, as only a reply of megabytes over a slow link does.
CREATE OR REPLACE FUNCTION hopaas.unlock_v1(p_log text) RETURNS TABLE (login text, seconds integer, ended boolean)
LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, 'worker');
BEGIN
    IF v.log IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM hopaas.end_transactions(
        CASE v.role WHEN 'owner' THEN interval '20 seconds' ELSE interval '2 minutes' END);
END $$;

-- Remove a user's grant for a study. Only the study's owners may call this. It waits for the log's lock only if the grant
-- is an owner's. It ends no sessions, because anybody can own a study, grant it to others, and revoke the grant.
CREATE OR REPLACE FUNCTION hopaas.revoke_v1(p_log text, p_user text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v hopaas.entry := hopaas.entered(p_log, 'owner');
    v_role text;
BEGIN
    SELECT role INTO v_role FROM hopaas.grants WHERE log = v.log AND username = p_user;
    IF v_role = 'owner' THEN
        PERFORM hopaas.keep_an_owner(v.log, p_user, NULL);
    END IF;
    DELETE FROM hopaas.grants WHERE log = v.log AND username = p_user AND role = v_role;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'user % has no grant for this study', p_user USING ERRCODE = 'ZH404';
    END IF;
END $$;

-- The studies that the user may see, in one call however many there are.
CREATE OR REPLACE FUNCTION hopaas.shared_v1() RETURNS TABLE (log text) LANGUAGE plpgsql AS $$
DECLARE v_user text := hopaas.caller();
BEGIN
    RETURN QUERY SELECT l.uuid FROM hopaas.logs l
        WHERE l.deleted IS NULL AND hopaas.role_in(l.id, l.uuid, v_user) IS NOT NULL;
END $$;

-- Fail if a study would lose its last owner, because then nobody could share or delete it.
CREATE OR REPLACE FUNCTION hopaas.keep_an_owner(p_log bigint, p_user text, p_role text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM hopaas.logs WHERE id = p_log FOR NO KEY UPDATE;
    IF p_role IS DISTINCT FROM 'owner'
       AND EXISTS (SELECT FROM hopaas.grants WHERE log = p_log AND username = p_user AND role = 'owner')
       AND NOT EXISTS (SELECT FROM hopaas.grants WHERE log = p_log AND username <> p_user AND role = 'owner') THEN
        RAISE EXCEPTION '% is the only owner of this study; make somebody else an owner first', p_user
            USING ERRCODE = 'ZH401';
    END IF;
END $$;

-- The grants for a study. Everyone with a grant may call this.
CREATE OR REPLACE FUNCTION hopaas.grants_v1(p_log text)
RETURNS TABLE (username text, role text, granted timestamptz, granted_by text) LANGUAGE sql AS $$
    SELECT hopaas.entered(p_log, 'viewer');
    SELECT g.username, g.role, g.granted, g.granted_by FROM hopaas.grants g JOIN hopaas.logs l ON l.id = g.log
    WHERE l.uuid = p_log ORDER BY g.username
$$;
