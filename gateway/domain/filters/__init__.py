"""The filter language of searches: text → syntax tree → text. Pure; the only user of lark.

`parsing` reads, `syntax` is the tree and prints itself; `gateway.store.search_sql`
compiles a tree to SQL. The language for users is described in docs/search.md.
"""
