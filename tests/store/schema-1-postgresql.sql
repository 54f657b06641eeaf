-- The tables of schema 1, as a store of that time had them. Never changed again
CREATE TABLE alias_history (
    id BIGSERIAL NOT NULL,
    name TEXT NOT NULL,
    alias TEXT NOT NULL,
    revision INTEGER NOT NULL,
    from_version TEXT NOT NULL,
    to_version TEXT NOT NULL,
    at FLOAT NOT NULL,
    actor TEXT NOT NULL,
    why TEXT NOT NULL,
    evidence TEXT NOT NULL,
    PRIMARY KEY (id)
);
CREATE UNIQUE INDEX alias_history_of ON alias_history (name, alias, revision);
CREATE TABLE aliases (
    name TEXT NOT NULL,
    alias TEXT NOT NULL,
    version TEXT NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (name, alias)
);
CREATE TABLE deployment_history (
    id BIGSERIAL NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    spec TEXT NOT NULL,
    at FLOAT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (id)
);
CREATE UNIQUE INDEX deployment_history_of ON deployment_history (name, revision);
CREATE TABLE deployments (
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    spec TEXT NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE events (
    id BIGSERIAL NOT NULL,
    at FLOAT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    name TEXT NOT NULL,
    details TEXT NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE evidence (
    name TEXT NOT NULL,
    route INTEGER NOT NULL,
    process TEXT NOT NULL,
    at FLOAT NOT NULL,
    counts TEXT NOT NULL,
    PRIMARY KEY (name, route, process)
);
CREATE TABLE migrations (
    number SERIAL NOT NULL,
    name TEXT NOT NULL,
    applied_at FLOAT NOT NULL,
    PRIMARY KEY (number)
);
CREATE TABLE processes (
    id TEXT NOT NULL,
    at FLOAT NOT NULL,
    status TEXT NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE rollouts (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    open INTEGER NOT NULL,
    started_at FLOAT NOT NULL,
    spec TEXT NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX rollouts_of ON rollouts (name, started_at);
CREATE TABLE versions (
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    added_at FLOAT NOT NULL,
    added_by TEXT NOT NULL,
    source TEXT NOT NULL,
    size BIGINT NOT NULL,
    parent TEXT NOT NULL,
    derivation TEXT NOT NULL,
    accepted_on TEXT NOT NULL,
    metrics TEXT NOT NULL,
    PRIMARY KEY (name, version)
);
CREATE TABLE webhooks (
    id TEXT NOT NULL,
    url TEXT NOT NULL,
    secret TEXT NOT NULL,
    actions TEXT NOT NULL,
    cursor BIGINT NOT NULL,
    attempts INTEGER NOT NULL,
    next_at FLOAT NOT NULL,
    lease_by TEXT NOT NULL,
    lease_until FLOAT NOT NULL,
    last_error TEXT NOT NULL,
    given_up INTEGER NOT NULL,
    PRIMARY KEY (id)
);
