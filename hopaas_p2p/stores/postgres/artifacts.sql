-- Files in the database, for models and plots of some megabytes. Larger files belong elsewhere; see HOPAAS_ARTIFACTS.
--
-- A key begins with the uuid of its study, whose grants apply: workers add and remove files, viewers read them. A file is
-- sent in parts, in order, under a token that its sender makes up, and is visible once it is complete. Every statement may
-- be sent twice.

-- == migration 10 ==

CREATE TABLE hopaas.artifacts (
    id bigserial PRIMARY KEY,
    log bigint NOT NULL,
    key text NOT NULL CHECK (length(key) <= 300 AND key ~ '^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$'),
    author text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    upload text NOT NULL UNIQUE CHECK (length(upload) BETWEEN 16 AND 64),
    size bigint NOT NULL CHECK (size >= 0),
    whole boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX artifacts_by_key ON hopaas.artifacts (key) WHERE whole;
CREATE INDEX artifacts_by_log ON hopaas.artifacts (log);

CREATE TABLE hopaas.artifact_parts (
    artifact bigint NOT NULL REFERENCES hopaas.artifacts ON DELETE CASCADE,
    part integer NOT NULL CHECK (part >= 0),
    data bytea NOT NULL CHECK (octet_length(data) <= 1048576),
    PRIMARY KEY (artifact, part)
);
ALTER TABLE hopaas.artifact_parts ALTER COLUMN data SET STORAGE EXTERNAL;  -- models do not compress

-- == functions ==

-- The caller in the log that a key belongs to, if its role there is at least p_least.
CREATE OR REPLACE FUNCTION hopaas.entered_by_key(p_key text, p_least text) RETURNS hopaas.entry LANGUAGE sql AS $$
    SELECT hopaas.entered(nullif(split_part(p_key, '/', 1), 'catalog'), p_least)
$$;

-- Store one part of a file; if a part is sent again, the newer bytes count. The last part makes the file visible, in place
-- of an earlier file under the same key. The first part also removes uploads older than a day that were never finished.
CREATE OR REPLACE FUNCTION hopaas.put_part_v1(p_key text, p_upload text, p_size bigint, p_part integer, p_data bytea)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v hopaas.entry := hopaas.entered_by_key(p_key, 'worker');  -- each time: the grant or the study may be gone by now
    v_file hopaas.artifacts;
    v_there bigint;
BEGIN
    IF p_size > 67108864 THEN  -- 64 parts of a megabyte
        RAISE EXCEPTION 'a file of % bytes is too large for the database, which keeps 67108864 at most', p_size
            USING ERRCODE = 'ZH413';
    END IF;
    IF v.log IS NULL THEN
        RAISE EXCEPTION 'the file % belongs to no study in this database', p_key USING ERRCODE = 'ZH405';
    END IF;
    IF p_part = 0 THEN
        DELETE FROM hopaas.artifacts WHERE id IN (
            SELECT id FROM hopaas.artifacts WHERE NOT whole AND at < now() - interval '1 day' FOR UPDATE SKIP LOCKED
        );
        INSERT INTO hopaas.artifacts (log, key, author, upload, size) VALUES (v.log, p_key, v.username, p_upload, p_size)
        ON CONFLICT (upload) DO NOTHING;
    END IF;
    SELECT * INTO v_file FROM hopaas.artifacts
    WHERE upload = p_upload AND author = v.username AND key = p_key AND size = p_size FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this upload was given up' USING ERRCODE = 'ZH406';
    END IF;
    IF v_file.whole THEN
        RETURN;
    END IF;
    IF p_part::bigint * 1048576 >= greatest(p_size, 1) THEN
        RAISE EXCEPTION 'this upload has no part %', p_part USING ERRCODE = 'ZH406';
    END IF;
    INSERT INTO hopaas.artifact_parts (artifact, part, data) VALUES (v_file.id, p_part, p_data)
    ON CONFLICT (artifact, part) DO UPDATE SET data = excluded.data;
    IF (p_part + 1)::bigint * 1048576 < p_size THEN
        RETURN;
    END IF;
    SELECT coalesce(sum(octet_length(data)), 0) INTO v_there FROM hopaas.artifact_parts WHERE artifact = v_file.id;
    IF v_there <> p_size THEN
        RAISE EXCEPTION '% of % bytes arrived: the file changed while it was sent', v_there, p_size
            USING ERRCODE = 'ZH406';
    END IF;
    LOOP
        BEGIN
            DELETE FROM hopaas.artifacts WHERE key = p_key AND whole;
            UPDATE hopaas.artifacts SET whole = true, at = now() WHERE id = v_file.id;
            RETURN;
        EXCEPTION WHEN unique_violation THEN  -- another session finished one at the same time; ours is the later one
        END;
    END LOOP;
END $$;

-- A part of the file under this key or, with p_id, of the file whose first parts were read; nothing if that file is gone.
CREATE OR REPLACE FUNCTION hopaas.read_part_v1(p_key text, p_id bigint, p_part integer)
RETURNS TABLE (id bigint, size bigint, data text) LANGUAGE sql AS $$
    SELECT hopaas.entered_by_key(p_key, 'viewer');
    SELECT a.id, a.size, encode(p.data, 'base64')
    FROM hopaas.artifacts a LEFT JOIN hopaas.artifact_parts p ON p.artifact = a.id AND p.part = p_part
    WHERE a.key = p_key AND a.whole AND (p_id IS NULL OR a.id = p_id)
$$;

-- Remove the file under this key, if there is one.
CREATE OR REPLACE FUNCTION hopaas.remove_artifact_v1(p_key text) RETURNS void LANGUAGE sql AS $$
    SELECT hopaas.entered_by_key(p_key, 'worker');
    DELETE FROM hopaas.artifacts WHERE key = p_key AND whole
$$;

-- The keys with this prefix, in the user's studies.
CREATE OR REPLACE FUNCTION hopaas.artifact_keys_v1(p_prefix text) RETURNS TABLE (key text) LANGUAGE plpgsql AS $$
DECLARE v_user text := hopaas.caller();
BEGIN
    RETURN QUERY
        SELECT a.key FROM hopaas.artifacts a
        WHERE a.whole AND starts_with(a.key, p_prefix) AND hopaas.role_in(a.log, '', v_user) IS NOT NULL
        ORDER BY a.key COLLATE "C";
END $$;
