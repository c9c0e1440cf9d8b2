//! Copies by behaviour: an engine and the agents that it talks to.

use super::*;
use crate::agent::copies::HeldCopies;
use crate::request::FloatTensor;

const KEY: RequestKey = RequestKey { client: 7, number: 1 };

fn at(seconds: u64) -> Now {
    Now::from_secs(seconds)
}

/// Of so many floats.
fn checkpoint(step: usize, floats: usize) -> Arc<Checkpoint> {
    let state = FloatTensor { shape: vec![1, floats], data: vec![step as f32; floats] };
    Arc::new(Checkpoint { step, images: 1, state })
}

/// Agents, and what the engine wants that is not for them.
#[derive(Default)]
struct Agents {
    there: BTreeMap<String, HeldCopies>,
    recalled: Vec<(RequestKey, Option<Recalled>)>,
}

impl Agents {
    fn of(names: &[&str]) -> Self {
        let there = names.iter().map(|&name| (name.to_owned(), HeldCopies::default())).collect();
        Self { there, recalled: Vec::new() }
    }

    /// Delivers what there is to say, and what is answered, to the end.
    fn deliver(&mut self, copies: &mut Copies, commands: Commands) {
        let mut open = std::collections::VecDeque::from(commands);
        while let Some(command) = open.pop_front() {
            match command {
                CopiesCommand::Recalled { key, copy } => self.recalled.push((key, copy)),
                CopiesCommand::Say { node, message } => {
                    open.extend(self.say(copies, &node, message));
                }
            }
        }
    }

    fn say(&mut self, copies: &mut Copies, node: &str, message: FromCoordinator) -> Commands {
        let Some(agent) = self.there.get_mut(node) else { return Vec::new() };
        match message {
            FromCoordinator::HoldCopy(part) => {
                let (key, step) = (part.key, part.step);
                let bytes = agent.take(*part);
                copies.taken(node, key, step, bytes)
            }
            FromCoordinator::SendCopy { key, step, offset } => {
                copies.part(node, agent.part(key, step, offset))
            }
            FromCoordinator::DropCopy { key } => {
                agent.drop_copy(&key);
                Vec::new()
            }
            message => panic!("{message:?}"),
        }
    }

    fn steps(&self) -> Vec<(&str, u32)> {
        let held = |(name, agent): (&'static str, &HeldCopies)| {
            agent.held().into_iter().map(move |copy| (name, copy.step)).collect::<Vec<_>>()
        };
        ["b", "c", "d"]
            .into_iter()
            .filter_map(|name| Some((name, self.there.get(name)?)))
            .flat_map(held)
            .collect()
    }
}

fn nodes(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Large enough for several parts.
const FLOATS: usize = 50_000;

#[test]
fn a_restarted_coordinator_gets_the_newest_copy_back() {
    let (mut copies, mut agents) = (Copies::default(), Agents::of(&["b", "c"]));
    let told = copies.hand_on(KEY, checkpoint(3, FLOATS), nodes(&["b", "c"]));
    agents.deliver(&mut copies, told);
    let told = copies.hand_on(KEY, checkpoint(4, FLOATS), nodes(&["c"]));
    agents.deliver(&mut copies, told);
    assert_eq!(agents.steps(), [("b", 3), ("c", 4)]);

    let mut copies = Copies::default();
    for node in ["b", "c"] {
        copies.returned(at(0), node, &agents.there[node].held(), |_| true);
    }
    assert!(copies.recall(at(0), KEY, 5).is_empty(), "as much is here");
    let told = copies.recall(at(0), KEY, 4);
    assert!(copies.recalls.contains_key(&KEY));
    agents.deliver(&mut copies, told);
    let (_, copy) = agents.recalled.pop().expect("it is back");
    let copy = copy.expect("a copy");
    assert_eq!((copy.node.as_str(), copy.step), ("c", 4));
    let back = crate::journal::file::from_bytes(&copy.bytes).expect("a checkpoint");
    assert_eq!(back, *checkpoint(4, FLOATS));
    assert!(copies.recalls.is_empty());
}

/// However slow a holder is, it gets the newest next, and whole ones only.
#[test]
fn the_newest_follows_the_one_that_is_on_its_way() {
    let (mut copies, mut agents) = (Copies::default(), Agents::of(&["b"]));
    let first = copies.hand_on(KEY, checkpoint(0, FLOATS), nodes(&["b"]));
    for step in 1..6 {
        assert!(copies.hand_on(KEY, checkpoint(step, FLOATS), nodes(&["b"])).is_empty());
    }
    assert!(copies.hand_on(KEY, checkpoint(2, FLOATS), nodes(&["b"])).is_empty(), "an old one");
    let parts = std::cell::Cell::new(0);
    let mut open = first;
    while let Some(CopiesCommand::Say { node, message }) = open.pop() {
        if let FromCoordinator::HoldCopy(part) = &message {
            assert!([0, 5].contains(&part.step), "{} was passed over", part.step);
            parts.set(parts.get() + 1);
        }
        open.extend(agents.say(&mut copies, &node, message));
    }
    assert_eq!(agents.steps(), [("b", 5)]);
    let each = (4 * FLOATS).div_ceil(crate::protocol::copies::PART_BYTES_MAX);
    assert_eq!(parts.get(), 2 * each);
    assert!(copies.transfers.is_empty());
}

#[test]
fn a_holder_that_has_nothing_or_is_gone_is_passed_over_and_nobody_waits_for_ever() {
    let held = [HeldCopy { key: KEY, step: 6 }];
    let mut copies = Copies::default();
    let mut agents = Agents::of(&["b", "c", "d"]);
    for node in ["b", "c", "d"] {
        copies.returned(at(0), node, &held, |_| true);
    }
    // One has lost it, one dies, one says nothing.
    let asked = copies.recall(at(0), KEY, 0);
    let [CopiesCommand::Say { node: first, message }] = asked.as_slice() else { panic!() };
    let asked = agents.say(&mut copies, first, message.clone());
    let [CopiesCommand::Say { node: second, .. }] = asked.as_slice() else { panic!("{asked:?}") };
    assert_ne!(first, second);
    let asked = copies.node_gone(second);
    assert!(matches!(asked.as_slice(), [CopiesCommand::Say { .. }]), "{asked:?}");
    assert!(copies.tick(at(2)).is_empty());
    let given_up = copies.tick(at(3));
    assert_eq!(given_up, [CopiesCommand::Recalled { key: KEY, copy: None }]);
    assert!(copies.recalls.is_empty());
}

#[test]
fn what_has_ended_or_is_never_asked_for_is_dropped() {
    let (mut copies, mut agents) = (Copies::default(), Agents::of(&["b", "c"]));
    let told = copies.hand_on(KEY, checkpoint(3, 4), nodes(&["b"]));
    agents.deliver(&mut copies, told);
    // The other one's is on its way.
    copies.hand_on(KEY, checkpoint(4, 4), nodes(&["c"]));
    let told = copies.ended(&KEY);
    assert_eq!(told.len(), 2);
    agents.deliver(&mut copies, told);
    assert!(agents.steps().is_empty());
    assert!(copies.held.is_empty() && copies.newest.is_empty() && copies.transfers.is_empty());

    copies.returned(at(0), "b", &[HeldCopy { key: KEY, step: 1 }], |_| false);
    assert!(copies.tick(at(59)).is_empty());
    let told = copies.tick(at(60));
    assert_eq!(told, [say("b", FromCoordinator::DropCopy { key: KEY })]);
    assert!(copies.held.is_empty() && copies.unclaimed.is_empty());

    copies.returned(at(0), "b", &[HeldCopy { key: KEY, step: 1 }], |_| false);
    assert_eq!(copies.recall(at(9), KEY, 0).len(), 1, "asked for after all");
    assert!(copies.unclaimed.is_empty());
}

#[test]
fn holders_are_two_others_first_those_that_did_not_produce_it() {
    let copies = Copies::default();
    let of = |there: &[&str], producers: &[&str], copies: &Copies| {
        let producers = producers.iter().map(|&node| node.to_owned()).collect();
        let mut holders = holders(&nodes(there), "a", &producers, &KEY, copies);
        holders.sort();
        holders
    };
    assert_eq!(of(&["a", "b", "c", "d"], &["b"], &copies), ["c", "d"]);
    assert_eq!(of(&["a", "b", "c"], &["b"], &copies), ["b", "c"], "better there than nowhere");
    assert_eq!(of(&["a", "b"], &["b"], &copies), ["b"]);
    assert!(of(&["a"], &["a"], &copies).is_empty());
    let mut held = Copies::default();
    for node in ["d", "e"] {
        held.returned(at(0), node, &[HeldCopy { key: KEY, step: 1 }], |_| true);
    }
    assert_eq!(of(&["a", "b", "c", "d", "e"], &["a"], &held), ["d", "e"], "who holds it already");
}
