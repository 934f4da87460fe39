"""Who may do what over HTTP, and who has done what."""

UP = (
    """
    create table outbox.api_key (
        id           uuid primary key default outbox.uuid7(),
        name         text not null,
        prefix       text not null unique,
        digest       bytea not null,
        scopes       text[] not null,
        tenant       text,
        created_at   timestamptz not null default clock_timestamp(),
        expires_at   timestamptz,
        revoked_at   timestamptz,
        constraint api_key_name check (length(name) between 1 and 200),
        constraint api_key_tenant check (length(tenant) between 1 and 200),
        constraint api_key_digest check (octet_length(digest) = 32),
        constraint api_key_scopes check (
            cardinality(scopes) > 0 and scopes <@ array['enqueue', 'read', 'read:payload', 'operate', 'admin']
        )
    )
    """,
    "comment on table outbox.api_key is 'keys to the HTTP API; what is stored opens nothing'",
    *(
        f"comment on column outbox.api_key.{column} is '{meaning}'"
        for column, meaning in {
            "id": "to speak of it",
            "name": "whose it is, for people",
            "prefix": "what the key begins with; by this it is found",
            "digest": "SHA-256 of the whole key",
            "scopes": "what it opens",
            "tenant": "whose jobs it sees; null: those of everybody",
            "created_at": "when it was made",
            "expires_at": "from when on it opens nothing; null: never",
            "revoked_at": "since when it opens nothing, because a person said so",
        }.items()
    ),
    """
    create table outbox.audit (
        id     bigint generated always as identity primary key,
        at     timestamptz not null default clock_timestamp(),
        actor  text not null,
        tenant text,
        action text not null,
        target text not null,
        detail jsonb not null default '{}'
    )
    """,
    "comment on table outbox.audit is 'what people did over HTTP and on the command line; rows are only ever added'",
    *(
        f"comment on column outbox.audit.{column} is '{meaning}'"
        for column, meaning in {
            "id": "grows",
            "at": "when",
            "actor": "who: the name of a key, or of whoever the host says it was",
            "tenant": "whose jobs the actor sees; null: those of everybody",
            "action": "what was done",
            "target": "to what",
            "detail": "how many, before and after, and the like",
        }.items()
    ),
    """
    create function outbox.refuse_change() returns trigger language plpgsql as $$
    begin
        raise exception 'outbox.%: rows are only ever added', tg_table_name using errcode = 'insufficient_privilege';
    end
    $$
    """,
    "comment on function outbox.refuse_change() is 'keeps a table as it was written'",
    """
    create trigger audit_stays before update or delete or truncate on outbox.audit
        for each statement execute function outbox.refuse_change()
    """,
)

DOWN = (
    "drop trigger audit_stays on outbox.audit",
    "drop function outbox.refuse_change",
    "drop table outbox.audit",
    "drop table outbox.api_key",
)
