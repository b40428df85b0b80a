//! Groups forwarded frames into what one `sendmsg` with UDP GSO can carry.
//!
//! Nothing is copied: a run is a list of places in the receive buffers, which the kernel gathers.

use std::net::SocketAddr;
use std::ops::Range;

use mesh_core::limits;
use mesh_core::relay::server::Local;

/// Runs, from the newest on, that a frame may still join. With more destinations at a time there are more calls; a longer
/// search would cost every frame.
const LOOK_BACK: usize = 16;

/// Frames of one size to one destination; the last may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) to: SocketAddr,
    pub(crate) local: Local,
    pub(crate) segment: usize,
    /// Of all pieces, in bytes.
    len: usize,
    /// Its pieces are a chain in the list of all pieces, from the first to the last.
    first: usize,
    last: usize,
}

impl Run {
    fn takes(&self, frame: usize) -> bool {
        self.len.is_multiple_of(self.segment)
            && frame <= self.segment
            && self.len + frame <= limits::MAX_GSO_BYTES
            && self.len / self.segment < limits::MAX_GSO_SEGMENTS
    }
}

/// Frames that are neighbours in the receive buffers.
#[derive(Debug)]
struct Piece {
    range: Range<usize>,
    /// The next one of the same run.
    next: Option<usize>,
}

/// The runs of one round of receiving.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    runs: Vec<Run>,
    pieces: Vec<Piece>,
}

impl Runs {
    /// Adds the frame at `range` of the receive buffers. It joins the newest run to its destination or starts another
    /// one, so that the frames of a channel keep their order.
    pub(crate) fn push(&mut self, range: Range<usize>, to: SocketAddr, local: Local) {
        let mut recent = self.runs.iter_mut().rev().take(LOOK_BACK);
        let newest = recent.find(|run| (run.to, run.local) == (to, local));
        let added = self.pieces.len();
        match newest {
            Some(run) if run.takes(range.len()) => {
                run.len += range.len();
                let last = &mut self.pieces[run.last];
                // Where the kernel coalesced frames, they are next to each other.
                if last.range.end == range.start {
                    last.range.end = range.end;
                    return;
                }
                last.next = Some(added);
                run.last = added;
            }
            _ => self.runs.push(Run {
                to,
                local,
                segment: range.len(),
                len: range.len(),
                first: added,
                last: added,
            }),
        }
        self.pieces.push(Piece { range, next: None });
    }

    /// The runs, each with its frames' places in the receive buffers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Run, Pieces<'_>)> {
        let chain = |run: &Run| Pieces {
            pieces: &self.pieces,
            next: Some(run.first),
        };
        self.runs.iter().map(move |run| (run, chain(run)))
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.pieces.clear();
    }
}

/// The places of one run's frames, in order.
#[derive(Debug, Clone)]
pub(crate) struct Pieces<'a> {
    pieces: &'a [Piece],
    next: Option<usize>,
}

impl Iterator for Pieces<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = &self.pieces[self.next?];
        self.next = piece.next;
        Some(piece.range.clone())
    }
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a piece is a range, and a run may have one"
)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    /// Pushes frames given as (range, port) and returns the runs as (port, segment, pieces).
    fn runs(frames: &[(Range<usize>, u16)]) -> Vec<(u16, usize, Vec<Range<usize>>)> {
        let mut runs = Runs::default();
        for (range, port) in frames {
            runs.push(range.clone(), address(*port), Local::default());
        }
        let runs = runs.iter();
        runs.map(|(run, pieces)| (run.to.port(), run.segment, pieces.collect()))
            .collect()
    }

    fn len(pieces: &[Range<usize>]) -> usize {
        pieces.iter().map(ExactSizeIterator::len).sum()
    }

    #[test]
    fn neighbours_to_one_destination_are_one_run_in_one_piece() {
        assert_eq!(
            runs(&[(0..10, 1), (10..20, 1), (20..25, 1)]),
            [(1, 10, vec![0..25])]
        );
    }

    #[test]
    fn frames_of_separate_buffers_are_one_run_in_several_pieces() {
        assert_eq!(
            runs(&[(0..3, 1), (50..53, 1), (70..72, 1)]),
            [(1, 3, vec![0..3, 50..53, 70..72])]
        );
    }

    #[test]
    fn frames_to_two_destinations_by_turns_are_two_runs() {
        assert_eq!(
            runs(&[(0..3, 1), (3..6, 2), (6..9, 1), (9..12, 2), (12..15, 2)]),
            [(1, 3, vec![0..3, 6..9]), (2, 3, vec![3..6, 9..15])]
        );
    }

    #[test]
    fn a_larger_frame_or_one_after_a_shorter_starts_a_run_and_no_frame_goes_before_it() {
        assert_eq!(
            runs(&[
                (0..3, 1),
                (3..7, 1),
                (7..8, 2),
                (8..11, 1),
                (11..14, 1),
                (14..17, 1)
            ]),
            [
                (1, 3, vec![0..3]),
                (1, 4, vec![3..7, 8..11]),
                (2, 1, vec![7..8]),
                (1, 3, vec![11..17]),
            ]
        );
    }

    #[test]
    fn runs_are_no_longer_than_the_kernel_takes() {
        let frames: Vec<_> = (0..200).map(|i| (i * 1200..(i + 1) * 1200, 1)).collect();
        let runs = runs(&frames);
        let lens: Vec<usize> = runs.iter().map(|(_, _, pieces)| len(pieces)).collect();
        assert!(lens.iter().all(|len| *len <= limits::MAX_GSO_BYTES));
        assert_eq!(lens.iter().sum::<usize>(), 240_000);
        assert_eq!(runs.len(), 240_000_usize.div_ceil(54 * 1200));
        let tiny: Vec<_> = (0..200).map(|i| (i * 20..(i + 1) * 20, 1)).collect();
        assert_eq!(self::runs(&tiny).len(), 4);
    }

    #[test]
    fn with_many_destinations_every_frame_still_is_in_a_run_and_in_order() {
        let many = LOOK_BACK as u16 * 2;
        let frames: Vec<_> = (0..600_usize)
            .map(|i| (i * 2000..i * 2000 + 1200, i as u16 % many))
            .collect();
        let runs = runs(&frames);
        for port in 0..many {
            let sent = runs.iter().filter(|run| run.0 == port);
            let sent: Vec<_> = sent.flat_map(|run| run.2.clone()).collect();
            let pushed = frames.iter().filter(|frame| frame.1 == port);
            assert_eq!(
                sent,
                pushed.map(|frame| frame.0.clone()).collect::<Vec<_>>()
            );
        }
    }
}
