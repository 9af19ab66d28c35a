"""PostgreSQL. The only importer of asyncpg; SQL stands in `queries/*.sql`."""
