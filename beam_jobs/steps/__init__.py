"""The steps of prepare, as plain functions: no Beam, so that a test of each is one line.

In the order in which rows pass through them:

    clients      who is who: a client's id as a keyed hash, and the client's split
    batches      rows as read -> `RowBatch`: checked, with clients hashed
    tokens       `RowBatch` -> `Tokenized`: token ids, as `rows.Rows`
    spilling     `Tokenized` -> segment files by range of client hashes, and a `ReadSummary`
    gathering    the segments of a range -> its rows, sorted by client, each client bounded
    parts        the rows of a range -> records by split, and a `PartSummary`
    summaries    what all of them counted, for the manifest
"""
