//! Groups forwarded frames into what one `sendmsg` with UDP GSO can carry.

use std::net::SocketAddr;
use std::ops::Range;

use mesh_core::limits;
use mesh_core::relay::server::Local;

/// Room for frames that were received one by one and are sent together.
const SCRATCH_BYTES: usize = 256 * 1024;

/// Frames of one size to one destination; the last may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) to: SocketAddr,
    pub(crate) local: Local,
    pub(crate) segment: usize,
    bytes: Bytes,
}

/// Where the frames of a run are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bytes {
    /// In the receive buffers, as they came.
    Received(Range<usize>),
    /// Copied.
    Scratch(Range<usize>),
}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Self::Received(range) | Self::Scratch(range) => range.len(),
        }
    }
}

/// The runs of one round of receiving.
#[derive(Debug)]
pub(crate) struct Runs {
    runs: Vec<Run>,
    scratch: Vec<u8>,
}

impl Runs {
    pub(crate) fn new() -> Self {
        Self {
            runs: Vec::new(),
            scratch: Vec::with_capacity(SCRATCH_BYTES),
        }
    }

    /// Adds the frame at `range` of the receive buffers. Where the kernel coalesced frames, they are next to each other
    /// and stay where they are; where it did not, they are copied together, which costs less than a call for each.
    pub(crate) fn push(
        &mut self,
        received: &[u8],
        range: Range<usize>,
        to: SocketAddr,
        local: Local,
    ) {
        if let Some(run) = self.runs.last_mut()
            && (run.to, run.local) == (to, local)
            && run.bytes.len().is_multiple_of(run.segment)
            && range.len() <= run.segment
            && run.bytes.len() + range.len() <= limits::MAX_GSO_BYTES
            && run.bytes.len() / run.segment < limits::MAX_GSO_SEGMENTS
        {
            if let Bytes::Received(last) = &mut run.bytes
                && last.end == range.start
            {
                last.end = range.end;
                return;
            }
            let copied = match &run.bytes {
                // A long run is well used already.
                Bytes::Received(last) if last.len() > run.segment => None,
                Bytes::Received(last) => {
                    copy(&mut self.scratch, received, last.clone()).map(|copied| copied.start)
                }
                Bytes::Scratch(copied) => Some(copied.start),
            };
            if let Some(start) = copied
                && let Some(copied) = copy(&mut self.scratch, received, range.clone())
            {
                run.bytes = Bytes::Scratch(start..copied.end);
                return;
            }
        }
        self.runs.push(Run {
            to,
            local,
            segment: range.len(),
            bytes: Bytes::Received(range),
        });
    }

    /// The runs with their frames.
    pub(crate) fn iter<'a>(
        &'a self,
        received: &'a [u8],
    ) -> impl Iterator<Item = (&'a Run, &'a [u8])> {
        self.runs.iter().map(move |run| {
            let bytes = match &run.bytes {
                Bytes::Received(range) => &received[range.clone()],
                Bytes::Scratch(range) => &self.scratch[range.clone()],
            };
            (run, bytes)
        })
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.scratch.clear();
    }
}

fn copy(scratch: &mut Vec<u8>, received: &[u8], range: Range<usize>) -> Option<Range<usize>> {
    let start = scratch.len();
    if start + range.len() > SCRATCH_BYTES {
        return None;
    }
    scratch.extend_from_slice(&received[range]);
    Some(start..scratch.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    /// Pushes frames given as (range, port) and returns the runs as (port, segment, bytes).
    fn runs(received: &[u8], frames: &[(Range<usize>, u16)]) -> Vec<(u16, usize, Vec<u8>)> {
        let mut runs = Runs::new();
        for (range, port) in frames {
            runs.push(received, range.clone(), address(*port), Local::default());
        }
        runs.iter(received)
            .map(|(run, bytes)| (run.to.port(), run.segment, bytes.to_vec()))
            .collect()
    }

    #[test]
    fn neighbours_to_one_destination_are_one_run_in_place() {
        let received: Vec<u8> = (0..30).collect();
        let mut grouped = Runs::new();
        for range in [0..10, 10..20, 20..25] {
            grouped.push(&received, range, address(1), Local::default());
        }
        assert_eq!(grouped.runs.len(), 1);
        assert_eq!(grouped.runs[0].bytes, Bytes::Received(0..25));
        assert_eq!(grouped.runs[0].segment, 10);
        assert!(grouped.scratch.is_empty());
    }

    #[test]
    fn frames_of_separate_buffers_are_copied_together() {
        let received: Vec<u8> = (0..100).collect();
        assert_eq!(
            runs(&received, &[(0..3, 1), (50..53, 1), (70..72, 1)]),
            [(1, 3, vec![0, 1, 2, 50, 51, 52, 70, 71])]
        );
    }

    #[test]
    fn another_destination_or_a_larger_frame_starts_a_run() {
        let received: Vec<u8> = (0..100).collect();
        assert_eq!(
            runs(
                &received,
                &[
                    (0..3, 1),
                    (3..6, 2),
                    (6..9, 2),
                    (9..13, 2),
                    (13..15, 2),
                    (15..17, 2)
                ]
            ),
            [
                (1, 3, vec![0, 1, 2]),
                (2, 3, vec![3, 4, 5, 6, 7, 8]),
                (2, 4, vec![9, 10, 11, 12, 13, 14]),
                (2, 2, vec![15, 16]),
            ]
        );
    }

    #[test]
    fn runs_are_no_longer_than_the_kernel_takes() {
        let received = vec![7; 4 * 65_536];
        let frames: Vec<_> = (0..200).map(|i| (i * 1200..(i + 1) * 1200, 1)).collect();
        let runs = runs(&received, &frames);
        assert!(
            runs.iter()
                .all(|(_, _, bytes)| bytes.len() <= limits::MAX_GSO_BYTES)
        );
        assert_eq!(
            runs.iter().map(|(_, _, bytes)| bytes.len()).sum::<usize>(),
            240_000
        );
        assert_eq!(runs.len(), 240_000_usize.div_ceil(54 * 1200));
        let tiny: Vec<_> = (0..200).map(|i| (i * 20..(i + 1) * 20, 1)).collect();
        assert_eq!(self::runs(&received, &tiny).len(), 4);
    }

    #[test]
    fn a_full_scratch_only_costs_more_calls() {
        let received = vec![7; 65_536];
        let frames: Vec<_> = (0..600)
            .map(|i| (i % 2 * 2000..i % 2 * 2000 + 1200, 1))
            .collect();
        let runs = runs(&received, &frames);
        assert_eq!(
            runs.iter().map(|(_, _, bytes)| bytes.len()).sum::<usize>(),
            600 * 1200
        );
    }
}
