"""Compiles filters and orders to parametrised SQL.

The one place of the gateway where SQL is put together from pieces; all other SQL
stands in queries/*.sql. What a user wrote reaches PostgreSQL as bind parameters
only: keys, values and cursors are `$n`, and the pieces of text are constants of
this package: `targets` (what can be searched), `conditions` (filters), `pages`
(orders and keysets).
"""

from gateway.store.search_sql.conditions import Compiler
from gateway.store.search_sql.pages import compile_page, phases
from gateway.store.search_sql.targets import EXPERIMENTS, RUNS, Target

__all__ = ["EXPERIMENTS", "RUNS", "Compiler", "Target", "compile_page", "phases"]
