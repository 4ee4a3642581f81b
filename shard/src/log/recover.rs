//! Which of the blocks found in the segments are the log, where it ends, and whether it ends too early.
//!
//! The log begins at the first unit of the oldest segment that is still needed and goes on as long as the next block
//! follows: next sequence, CRC of the one before it, same or later incarnation, and next place in the segment or the
//! beginning of a later one. Where that ends, either a write was cut off (a torn tail, never acknowledged) or durable
//! blocks were lost. A later block that says so decides: see [`Linked::damage`].

use std::collections::BTreeMap;

use super::block::Header;

/// A whole block, and the file it stands in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) file: usize,
    pub(crate) header: Header,
}

/// What [`link`] found.
#[derive(Debug, Default)]
pub(crate) struct Linked {
    /// The log's blocks in order.
    pub(crate) chain: Vec<Seen>,
    /// After damage: the durable blocks behind the gap, in order.
    pub(crate) salvage: Vec<Seen>,
    /// Whole blocks behind the end that are no part of the log: an unfinished write, or from before an earlier cut.
    pub(crate) cut: u64,
    /// What is wrong, if a durable block is missing.
    pub(crate) damage: Option<String>,
    /// The oldest segment that is needed.
    pub(crate) oldest: u64,
    /// Highest numbers in any block, in the log or not.
    pub(crate) last_segment: u64,
    pub(crate) last_incarnation: u64,
    pub(crate) last_sequence: u64,
    pub(crate) last_durable: u64,
    pub(crate) last_event: u64,
}

fn follows(last: &Seen, next: &Seen) -> bool {
    let (a, b) = (&last.header, &next.header);
    let in_place = if last.file == next.file {
        a.segment == b.segment && a.unit + a.units() == b.unit
    } else {
        b.unit == 0 && b.segment > a.segment
    };
    in_place && b.sequence == a.sequence + 1 && b.previous == a.crc && b.incarnation >= a.incarnation
}

/// Puts the blocks of all files of one log in order.
pub(crate) fn link(blocks: &[Seen]) -> Linked {
    let max = |field: fn(&Header) -> u64| blocks.iter().map(|seen| field(&seen.header)).max();
    let Some(oldest) = max(|header| header.oldest) else {
        return Linked::default();
    };
    let mut linked = Linked {
        oldest,
        last_segment: max(|header| header.segment).unwrap_or(0),
        last_incarnation: max(|header| header.incarnation).unwrap_or(0),
        last_sequence: max(|header| header.sequence).unwrap_or(0),
        last_durable: max(|header| header.durable).unwrap_or(0),
        last_event: max(|header| header.event).unwrap_or(0),
        ..Linked::default()
    };
    let mut by_sequence: BTreeMap<u64, Vec<Seen>> = BTreeMap::new();
    for seen in blocks.iter().filter(|seen| seen.header.segment >= oldest) {
        by_sequence.entry(seen.header.sequence).or_default().push(*seen);
    }
    let start = blocks
        .iter()
        .filter(|seen| (seen.header.segment, seen.header.unit) == (oldest, 0))
        .max_by_key(|seen| seen.header.incarnation);
    let mut next = start.copied();
    while let Some(seen) = next {
        linked.chain.push(seen);
        next = by_sequence
            .get(&(seen.header.sequence + 1))
            .and_then(|all| all.iter().find(|candidate| follows(&seen, candidate)))
            .copied();
    }
    judge_the_end(&mut linked, &by_sequence);
    linked
}

/// Looks at the blocks behind the end: do they witness that the log went on, durably?
fn judge_the_end(linked: &mut Linked, by_sequence: &BTreeMap<u64, Vec<Seen>>) {
    let end = linked.chain.last().map(|seen| seen.header);
    let (sequence, incarnation) = end.map_or((0, 0), |header| (header.sequence, header.incarnation));
    // A block is void if a later incarnation began at or before its sequence: it was behind a cut.
    let mut newest = incarnation;
    let mut behind: Vec<&Seen> = Vec::new();
    for all in by_sequence.range(sequence + 1..).map(|(_, all)| all) {
        newest = all.iter().map(|seen| seen.header.incarnation).fold(newest, u64::max);
        behind.extend(all.iter().filter(|seen| seen.header.incarnation == newest));
    }
    linked.cut = by_sequence.values().map(|all| all.len() as u64).sum::<u64>() - linked.chain.len() as u64;
    let witness = behind
        .iter()
        .find(|seen| end.is_none() || seen.header.durable > sequence || seen.header.incarnation > incarnation);
    let Some(witness) = witness else { return };
    let Header { segment, unit, sequence: by, durable, .. } = witness.header;
    linked.damage = Some(match end {
        Some(end) => format!(
            "block {} is missing behind segment {} unit {}, but block {by} in segment {segment} unit {unit} \
             was written when all up to {durable} were durable",
            sequence + 1,
            end.segment,
            end.unit,
        ),
        None => format!(
            "segment {} has no first block, but block {by} in segment {segment} unit {unit} is there",
            linked.oldest
        ),
    });
    linked.salvage = behind.into_iter().copied().collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of one-unit blocks, four per segment, in files of the same number; one durable write each.
    fn chain(count: u64, incarnation: u64) -> Vec<Seen> {
        (1..=count)
            .map(|sequence| Seen {
                file: ((sequence - 1) / 4) as usize,
                header: Header {
                    crc: (incarnation * 1000 + sequence) as u32,
                    previous: if sequence == 1 { 0 } else { (incarnation * 1000 + sequence - 1) as u32 },
                    segment: 1 + (sequence - 1) / 4,
                    unit: ((sequence - 1) % 4) as u32,
                    incarnation,
                    sequence,
                    durable: sequence - 1,
                    oldest: 1,
                    ..Header::default()
                },
            })
            .collect()
    }

    fn sequences(blocks: &[Seen]) -> Vec<u64> {
        blocks.iter().map(|seen| seen.header.sequence).collect()
    }

    #[test]
    fn a_whole_chain_links_across_segments_in_any_order_of_files() {
        let mut blocks = chain(10, 1);
        blocks.reverse();
        let linked = link(&blocks);
        assert_eq!(sequences(&linked.chain), (1..=10).collect::<Vec<_>>());
        assert_eq!((linked.cut, linked.damage), (0, None));
        assert_eq!(link(&[]).chain.len(), 0);
    }

    #[test]
    fn any_missing_block_but_the_last_is_damage() {
        for lost in 1..=10 {
            let mut blocks = chain(10, 1);
            blocks.retain(|seen| seen.header.sequence != lost);
            let linked = link(&blocks);
            assert_eq!(sequences(&linked.chain), (1..lost).collect::<Vec<_>>());
            assert_eq!(linked.damage.is_some(), lost < 10, "{lost}");
            assert_eq!(sequences(&linked.salvage), (lost + 1..=10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_gap_inside_one_unsynced_write_is_a_torn_tail() {
        let mut blocks = chain(10, 1);
        for seen in &mut blocks[6..] {
            seen.header.durable = 6;
        }
        blocks.remove(7);
        let linked = link(&blocks);
        assert_eq!(sequences(&linked.chain), (1..=7).collect::<Vec<_>>());
        assert_eq!((linked.cut, linked.damage), (2, None));
    }

    /// The log was cut behind block 6; what was behind it stays on the disk, durable claims and all.
    #[test]
    fn blocks_from_before_a_cut_are_neither_the_log_nor_witnesses() {
        let mut blocks = chain(10, 1);
        for seen in &mut blocks[6..] {
            seen.header.durable = 6;
        }
        let mut opened = blocks[6];
        opened.header.incarnation = 2;
        opened.header.crc = 2007;
        blocks[6] = opened;
        let linked = link(&blocks);
        assert_eq!(sequences(&linked.chain), (1..=7).collect::<Vec<_>>());
        assert_eq!((linked.cut, linked.damage), (3, None));
        // Even with the CRC of the new block the old incarnation does not follow.
        blocks[7].header.previous = 2007;
        assert_eq!(link(&blocks).chain.len(), 7);
        // The new incarnation's own second block, lost, leaves the old one's blocks void.
        let mut third = blocks[8];
        third.header.incarnation = 2;
        blocks.push(third);
        let linked = link(&blocks);
        assert_eq!((linked.chain.len(), linked.damage), (7, None));
        blocks[10].header.durable = 8;
        let linked = link(&blocks);
        assert!(linked.damage.is_some());
        assert_eq!(sequences(&linked.salvage), [9]);
    }

    #[test]
    fn a_later_incarnation_witnesses_everything_before_its_first_block() {
        let mut blocks = chain(10, 1);
        blocks[9].header.incarnation = 2;
        blocks[9].header.durable = 0;
        blocks.remove(8);
        assert!(link(&blocks).damage.is_some());
    }

    #[test]
    fn segments_below_the_oldest_are_ignored_and_a_missing_first_block_is_damage() {
        let mut blocks = chain(10, 1);
        blocks[9].header.oldest = 2;
        blocks.remove(1);
        let linked = link(&blocks);
        assert_eq!(sequences(&linked.chain), (5..=10).collect::<Vec<_>>());
        assert_eq!(linked.damage, None);
        blocks.retain(|seen| seen.header.sequence != 5);
        let linked = link(&blocks);
        assert!(linked.damage.is_some() && linked.chain.is_empty());
        assert_eq!(sequences(&linked.salvage), (6..=10).collect::<Vec<_>>());
    }

    #[test]
    fn a_block_in_the_wrong_place_or_of_another_history_does_not_follow() {
        let wrong: [fn(&mut Seen); 6] = [
            |seen| seen.header.unit = 3,
            |seen| seen.file = 9,
            |seen| seen.header.segment = 9,
            |seen| seen.header.previous ^= 1,
            |seen| seen.header.incarnation = 0,
            |seen| seen.header.sequence = 4,
        ];
        for change in wrong {
            let mut blocks = chain(3, 1);
            change(&mut blocks[2]);
            assert_eq!(link(&blocks).chain.len(), 2);
        }
    }
}
