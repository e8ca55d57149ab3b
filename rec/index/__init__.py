"""The serving database: products, users and events, one vector table per bundle, and which bundle is active.

migrations.py how the tables came about, forward only
tables.py     what exists in the database, and names made from bundle ids
roles.py      who may read what serving reads
vector_table.py  the vectors of a bundle -> its table (binary COPY, HNSW)
load.py       a bundle and its recipe's data -> tables, all or nothing
experiments.py  which bundle is tried beside the active one, and on whom
promote.py    which bundle answers: promote, roll back
rule_versions.py  the rules of a catalogue: apply, revert
check.py      whether the vectors in the database are those of the bundle
repair.py     a table of vectors anew, beside the live one
live_events.py  what servers were told of shoppers since the last ingest
exposures.py  the lists that servers have shown
retention.py  how long both are kept
binary_copy.py  rows of COPY's binary format
forget.py     deletion of a user's data
status.py     versions, size, active bundle
connections.py   pooled connections, set for vector search
search.py     nearest products under filters
prewarm.py    what searches read -> Postgres' memory
recall.py     what the index finds of exact search: the gate of promotion, and what servers sample
catalogue.py  live product facts, and what is known of a user
"""
