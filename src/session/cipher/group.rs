//! Deals packets to the lanes of [`avx512`](super::avx512).

use core::cmp::Reverse;

use super::avx512::{self, BLOCK, LANES, Lane};
use super::{Job, Key, MAX_JOBS, TAG, with_ring};

/// Packets of more blocks are `ring`'s: no datagram is, and the lanes count blocks in 32 bits.
const MOST_BLOCKS: usize = 1 << 16;

// What things cost in nanoseconds, measured on a Sapphire Rapids at 2.9 GHz. They only choose
// between ways to the same result, so that other CPUs need but about the same proportions.
/// A run of the kernel, whatever it does.
const RUN_COST: usize = 430;
/// A block in all lanes at once.
const BLOCK_COST: usize = 260;
/// Putting the pieces of cut packets together, in a run.
const JOIN_COST: usize = 500;
/// A packet with `ring`.
const RING_COST: usize = 170;
/// Each of its blocks.
const RING_BLOCK_COST: usize = 36;

/// Seals or opens at most 64 jobs; bit `i` says that it went well with job `i`.
///
/// The caller has found that the CPU can run the kernel.
pub(super) fn process<const SEAL: bool>(key: &Key, jobs: &mut [Job<'_>]) -> u64 {
    let count = jobs.len().min(MAX_JOBS);
    let jobs = &mut jobs[..count];
    let mut done = 0;
    // Packets of about the same length side by side, longest first. Mostly they already are.
    if jobs.is_sorted_by_key(|job| Reverse(blocks(job))) {
        for (i, jobs) in jobs.chunks_mut(LANES).enumerate() {
            done |= u64::from(sixteen::<SEAL>(key, jobs)) << (i * LANES);
        }
        return done;
    }
    let mut order: [u8; MAX_JOBS] = core::array::from_fn(|i| i as u8);
    let order = &mut order[..jobs.len()];
    order.sort_unstable_by_key(|i| Reverse(blocks(&jobs[usize::from(*i)])));
    for order in order.chunks(LANES) {
        let mut picked: [Job<'_>; LANES] = Default::default();
        let picked = &mut picked[..order.len()];
        for (to, i) in picked.iter_mut().zip(order) {
            *to = core::mem::take(&mut jobs[usize::from(*i)]);
        }
        let went_well = sixteen::<SEAL>(key, picked);
        for (lane, (from, i)) in picked.iter_mut().zip(order).enumerate() {
            jobs[usize::from(*i)] = core::mem::take(from);
            done |= u64::from(went_well >> lane & 1) << *i;
        }
    }
    done
}

/// How many blocks of key stream its data need.
fn blocks(job: &Job<'_>) -> usize {
    job.data.len().saturating_sub(TAG).div_ceil(BLOCK)
}

/// Up to sixteen jobs, longest first.
fn sixteen<const SEAL: bool>(key: &Key, jobs: &mut [Job<'_>]) -> u16 {
    let plan = Plan::of(jobs);
    let (first, rest) = jobs.split_at_mut(plan.ring);
    let mut done = 0;
    if !first.is_empty()
        && let Some(key) = key.ring()
    {
        for (i, job) in first.iter_mut().enumerate() {
            done |= u16::from(with_ring::<SEAL>(&key, job)) << i;
        }
    }
    if !rest.is_empty() {
        done |= in_lanes::<SEAL>(key, rest, plan.most) << plan.ring;
    }
    done
}

/// How to do a set of jobs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// So many from the longest on go to `ring`, the others into lanes.
    pub(super) ring: usize,
    /// The most blocks of a lane: what is longer is cut into pieces for several lanes.
    pub(super) most: usize,
}

impl Plan {
    /// The cheapest plan for up to sixteen jobs, longest first.
    pub(super) fn of(jobs: &[Job<'_>]) -> Self {
        let mut size = [0; LANES];
        for (size, job) in size.iter_mut().zip(jobs) {
            *size = blocks(job);
        }
        let size = &size[..jobs.len()];
        // As almost always: a lane for each of sixteen packets of one size, which is cheapest whatever the size.
        if let [first, .., last] = size
            && size.len() == LANES
            && first == last
            && (1..=MOST_BLOCKS).contains(first)
        {
            return Self {
                ring: 0,
                most: *first,
            };
        }
        let ring_one = |size: usize| RING_COST + size * RING_BLOCK_COST;
        let mut best = Self {
            ring: jobs.len(),
            most: 1,
        };
        let mut least = size.iter().copied().map(ring_one).sum();
        if least <= RUN_COST + BLOCK_COST {
            return best;
        }
        let too_long = size.iter().take_while(|size| **size > MOST_BLOCKS).count();
        let mut ring_cost = 0;
        for (ring, next) in size.iter().enumerate() {
            let (cost, most) = lanes_cost(&size[ring..]);
            if ring >= too_long && ring_cost + cost < least {
                least = ring_cost + cost;
                best = Self { ring, most };
            }
            ring_cost += ring_one(*next);
            if ring_cost >= least {
                break;
            }
        }
        best
    }
}

/// What these cost in lanes, and the most blocks of a lane.
fn lanes_cost(size: &[usize]) -> (usize, usize) {
    let Some(&longest) = size.first() else {
        return (0, 1);
    };
    let whole = RUN_COST + longest * BLOCK_COST;
    // As many pieces as there are lanes, if that is not for nothing.
    let most = longest.div_ceil(LANES / size.len()).max(1);
    let cut = RUN_COST + most * BLOCK_COST + JOIN_COST;
    if cut < whole {
        (cut, most)
    } else {
        (whole, longest.max(1))
    }
}

/// Seals or opens jobs that fit the lanes when cut into pieces of `most` blocks, on a CPU that can
/// run the kernel.
pub(super) fn in_lanes<const SEAL: bool>(key: &Key, jobs: &mut [Job<'_>], most: usize) -> u16 {
    let mut lanes: [Lane<'_>; LANES] = core::array::from_fn(|i| Lane {
        counter: 0,
        first: 1,
        data: &mut [],
        head: i,
        after: 0,
        total: 0,
    });
    let mut heads = [0; LANES];
    let mut next = 0;
    for (job, head) in jobs.iter_mut().zip(&mut heads) {
        *head = next;
        next += deal(job, &mut lanes, next, most);
    }
    // SAFETY: the kernel is chosen only where the CPU has the features that this function needs.
    let tags = unsafe { avx512::run::<SEAL>(&key.bytes, &mut lanes) };
    let mut done = 0;
    for (i, (job, head)) in jobs.iter_mut().zip(heads).enumerate() {
        let Some((_, tag)) = job.data.split_last_chunk_mut::<TAG>() else {
            continue;
        };
        if SEAL {
            *tag = tags[head];
        }
        // One comparison of all bytes, without a branch: nothing tells how many are right.
        let differ = u128::from_le_bytes(*tag) ^ u128::from_le_bytes(tags[head]);
        done |= u16::from(core::hint::black_box(differ) == 0) << i;
    }
    done
}

/// Puts a job into lanes from `at` on, and returns how many it took.
fn deal<'a>(job: &'a mut Job<'_>, lanes: &mut [Lane<'a>; LANES], at: usize, most: usize) -> usize {
    let counter = job.counter;
    let mut data = match job.data.split_last_chunk_mut::<TAG>() {
        Some((data, _)) => data,
        None => &mut [],
    };
    let total = data.len();
    let mut first = 1;
    let mut taken = 0;
    for lane in &mut lanes[at..] {
        let (piece, rest) = data.split_at_mut(data.len().min(most * BLOCK));
        *lane = Lane {
            counter,
            first,
            data: piece,
            head: at,
            after: rest.len().div_ceil(TAG) as u64,
            total: total as u64,
        };
        data = rest;
        taken += 1;
        first += most as u32;
        if data.is_empty() {
            break;
        }
    }
    // Else the rest of a packet would go out as it is. The plan sees to it.
    assert!(data.is_empty(), "a packet has more pieces than lanes");
    taken
}
