"""The inbox: what has come from outside and is not to be done twice, and what was answered to it."""

UP = (
    """
    create table outbox.inbox (
        source      text not null,
        message_id  text not null,
        accepted_at timestamptz not null default clock_timestamp(),
        fingerprint text,
        answer      jsonb,
        primary key (source, message_id),
        constraint inbox_names check (length(source) between 1 and 1000 and length(message_id) between 1 and 300)
    )
    """,
    "comment on table outbox.inbox is 'messages and requests that have been accepted, each once'",
    "comment on column outbox.inbox.source is 'who sends such messages, or which address takes such requests'",
    "comment on column outbox.inbox.message_id is 'the id of the message, or the Idempotency-Key of the request'",
    "comment on column outbox.inbox.accepted_at is 'when it was; retention counts from then'",
    "comment on column outbox.inbox.fingerprint is 'SHA-256 of the request; null for a message'",
    "comment on column outbox.inbox.answer is 'what the request was answered with: {status, headers, body}'",
    "create index inbox_accepted_at on outbox.inbox (accepted_at)",
)

DOWN = ("drop table outbox.inbox",)
