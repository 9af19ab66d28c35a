//! The records that are logged and not acknowledged, as columns. Pure.

use std::collections::VecDeque;
use std::time::Instant;

use crate::v1::MetricBatch;

/// Points of a batch, and a record fits a batch.
pub(crate) const RECORD_POINTS_MAX: usize = 8_192;

/// Consecutive records: what becomes one batch, or, after a resume in its middle,
/// the rest of one.
pub(crate) struct Block {
    pub(crate) first_sequence: u64,
    /// When its first record was logged.
    pub(crate) started: Instant,
    /// Takes no more records.
    pub(crate) sealed: bool,
    /// How many points the records up to each have.
    ends: Vec<usize>,
    acknowledged_points: usize,
    series_index: Vec<u32>,
    step: Vec<i64>,
    time_unix_us: Vec<i64>,
    value: Vec<f64>,
}

impl Block {
    fn new(first_sequence: u64, capacity: usize) -> Self {
        Self {
            first_sequence,
            started: Instant::now(),
            sealed: false,
            ends: Vec::new(),
            acknowledged_points: 0,
            series_index: Vec::with_capacity(capacity),
            step: Vec::with_capacity(capacity),
            time_unix_us: Vec::with_capacity(capacity),
            value: Vec::with_capacity(capacity),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(crate) fn push(&mut self, series_index: u32, step: i64, time_unix_us: i64, value: f64) {
        self.series_index.push(series_index);
        self.step.push(step);
        self.time_unix_us.push(time_unix_us);
        self.value.push(value);
    }

    fn last_sequence(&self) -> u64 {
        self.first_sequence + self.ends.len() as u64 - 1
    }

    fn points_before(&self, sequence: u64) -> usize {
        match sequence.saturating_sub(self.first_sequence) {
            0 => 0,
            records => self.ends[records as usize - 1],
        }
    }

    /// The records from `sequence` on.
    pub(crate) fn batch(&self, sequence: u64) -> MetricBatch {
        let start = self.points_before(sequence);
        MetricBatch {
            first_sequence: sequence,
            record_count: (self.last_sequence() - sequence + 1) as u32,
            series_index: self.series_index[start..].to_vec(),
            step: self.step[start..].to_vec(),
            time_unix_us: self.time_unix_us[start..].to_vec(),
            value: self.value[start..].to_vec(),
        }
    }
}

pub(crate) struct Backlog {
    batch_points_max: usize,
    blocks: VecDeque<Block>,
    /// Of the last record logged.
    pub(crate) last_sequence: u64,
    /// Logged and not acknowledged.
    pub(crate) points: usize,
}

impl Backlog {
    pub(crate) fn new(batch_points_max: usize) -> Self {
        Self { batch_points_max, blocks: VecDeque::new(), last_sequence: 0, points: 0 }
    }

    /// The block for a record of so many points.
    pub(crate) fn begin(&mut self, points: usize) -> &mut Block {
        let fits = self.blocks.back_mut().is_some_and(|last| {
            last.sealed |= last.value.len() + points > self.batch_points_max;
            !last.sealed
        });
        if !fits {
            // A writer that logs little needs no large blocks.
            let capacity = (points * 4).clamp(points, self.batch_points_max.max(points));
            self.blocks.push_back(Block::new(self.last_sequence + 1, capacity));
        }
        self.current()
    }

    /// The block of the record that was begun.
    pub(crate) fn current(&mut self) -> &mut Block {
        let last = self.blocks.len() - 1;
        &mut self.blocks[last]
    }

    /// Closes the record that the last points are; says whether its block is sealed.
    pub(crate) fn end(&mut self) -> bool {
        let Some(block) = self.blocks.back_mut() else {
            return false;
        };
        let before = block.ends.last().copied().unwrap_or(0);
        self.points += block.value.len() - before;
        block.ends.push(block.value.len());
        self.last_sequence += 1;
        block.sealed |= block.value.len() >= self.batch_points_max;
        block.sealed
    }

    /// Drops the records up to `committed`.
    pub(crate) fn forget(&mut self, committed: u64) {
        while let Some(block) = self.blocks.front_mut() {
            if committed < block.first_sequence {
                break;
            }
            let last = block.last_sequence();
            let acknowledged = block.points_before(committed.min(last) + 1);
            self.points -= acknowledged - block.acknowledged_points;
            block.acknowledged_points = acknowledged;
            if committed < last {
                break;
            }
            self.blocks.pop_front();
        }
    }

    /// The block with the record; `None` when there is none yet.
    pub(crate) fn find(&mut self, sequence: u64) -> Option<&mut Block> {
        let place = self.blocks.partition_point(|block| block.last_sequence() < sequence);
        self.blocks.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(backlog: &mut Backlog, points: usize) {
        let block = backlog.begin(points);
        for index in 0..points {
            block.push(index as u32, 0, 0, 0.5);
        }
        backlog.end();
    }

    #[test]
    fn a_resume_in_the_middle_of_a_block_sends_the_rest_of_it() {
        let mut backlog = Backlog::new(100);
        for _ in 0..10 {
            log(&mut backlog, 3);
        }
        backlog.forget(4);
        assert_eq!(backlog.points, 18);
        let batch = backlog.find(5).unwrap().batch(5);
        assert_eq!((batch.first_sequence, batch.record_count, batch.value.len()), (5, 6, 18));
    }

    #[test]
    fn a_record_never_straddles_two_blocks() {
        let mut backlog = Backlog::new(10);
        for _ in 0..4 {
            log(&mut backlog, 7);
        }
        assert_eq!(backlog.find(2).unwrap().batch(2).value.len(), 7);
        log(&mut backlog, 8_000);
        assert_eq!(backlog.find(5).unwrap().batch(5).value.len(), 8_000);
    }

    #[test]
    fn forgetting_everything_leaves_nothing() {
        let mut backlog = Backlog::new(10);
        for _ in 0..9 {
            log(&mut backlog, 4);
        }
        backlog.forget(20);
        assert_eq!(backlog.points, 0);
        assert!(backlog.find(10).is_none());
    }
}
