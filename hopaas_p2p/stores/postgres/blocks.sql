-- Finished trials, which snapshots share: each block is stored once, under a name that ends in a hash of its bytes.

-- == migration 8 ==

CREATE TABLE hopaas.blocks (
    log integer NOT NULL,
    name text NOT NULL CHECK (length(name) BETWEEN 33 AND 64),
    data bytea NOT NULL,
    PRIMARY KEY (log, name)
);
ALTER TABLE hopaas.blocks ALTER COLUMN data SET STORAGE EXTERNAL;  -- compressed already

-- == functions ==

-- The names of a log's blocks.
CREATE OR REPLACE FUNCTION hopaas.block_names_v1(p_log text) RETURNS TABLE (name text)
LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, 'viewer');
BEGIN
    RETURN QUERY SELECT b.name FROM hopaas.blocks b WHERE b.log = v.log;
END $$;

-- These blocks, as far as they are there; for COPY in the binary format: the server reads and sends, and converts nothing.
CREATE OR REPLACE FUNCTION hopaas.blocks_v1(p_log text, p_names text[]) RETURNS TABLE (name text, data bytea)
LANGUAGE plpgsql AS $$
DECLARE v hopaas.entry := hopaas.entered(p_log, 'viewer');
BEGIN
    RETURN QUERY SELECT b.name, b.data FROM hopaas.blocks b WHERE b.log = v.log AND b.name = ANY (p_names);
END $$;

-- Keep a block. Nobody can put other bytes under a name that honest peers will use.
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
