-- A reader of the newest steps asks for chunks with last_step >= its first one. In the index,
-- that is seen without fetching every chunk of the series from the table. A key column: what is
-- only INCLUDEd is no condition of an index scan.
--
-- Gateways of before run beside it: the columns they know come first. While an index is made, a
-- million chunks in a second or so, flushes and merges wait; reads wait for the DROP alone, which
-- in turn waits for those that have begun.

CREATE INDEX loose_chunks_by_steps ON loose_chunks (run_id, series_id, first_step, last_step);
DROP INDEX loose_chunks_by_step;
ALTER INDEX loose_chunks_by_steps RENAME TO loose_chunks_by_step;

CREATE INDEX merged_chunks_by_steps ON merged_chunks (run_id, series_id, first_step, last_step);
DROP INDEX merged_chunks_by_step;
ALTER INDEX merged_chunks_by_steps RENAME TO merged_chunks_by_step;
