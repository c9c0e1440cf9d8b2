//! Timelines against a clock that the test turns.

use super::*;

const FORWARD: Key = Key { op: "forward", part: "" };
const ATTEND: Key = Key { op: "forward", part: "attend" };
const QKV: Key = Key { op: "forward", part: "ulysses_qkv" };

fn of<'t>(time: &'t RunTime, op: &str) -> &'t OpTime {
    time.ops.iter().find(|time| time.op == op).unwrap_or_else(|| panic!("no {op} in {time:?}"))
}

#[test]
fn time_is_charged_to_what_was_under_way() {
    let mut timeline = Timeline::new(1);
    timeline.begin(1_000, FORWARD, Activity::Compute);
    timeline.begin(3_000, ATTEND, Activity::Compute);
    timeline.begin(10_000, QKV, Activity::Serialise);
    let before = timeline.turn(11_000, Activity::Wait);
    timeline.turn(15_000, before);
    timeline.end(15_500);
    let time = timeline.summary(16_000);
    assert_eq!(of(&time, "forward").compute_s, 2e-6);
    assert_eq!(of(&time, "forward.attend").compute_s, 7e-6);
    let qkv = of(&time, "forward.ulysses_qkv");
    assert_eq!((qkv.serialise_s, qkv.wait_s, qkv.compute_s), (1.5e-6, 4e-6, 0.0));
    assert_eq!((time.wall_s, time.elsewhere_s), (16e-6, 1.5e-6));
}

/// Whatever happens in whatever order, nothing is lost and nothing counted twice.
#[test]
fn the_sums_are_the_wall_time() {
    let activities = [Activity::Compute, Activity::Wait, Activity::Send, Activity::Serialise];
    let mut timeline = Timeline::new(0);
    let (mut now, mut state) = (0, 9_u64);
    for _ in 0..10_000 {
        // Any mixture of calls will do; a fixed one can be repeated.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        now += state >> 50;
        let activity = activities[(state >> 40) as usize % activities.len()];
        match (state >> 45) % 4 {
            0 => timeline.begin(now, FORWARD, activity),
            1 => timeline.begin(now, ATTEND, activity),
            2 => drop(timeline.turn(now, activity)),
            _ => timeline.end(now),
        }
    }
    let time = timeline.summary(now);
    let sum = time.ops.iter().map(OpTime::total_s).sum::<f64>() + time.elsewhere_s;
    assert!((sum - time.wall_s).abs() < 1e-9 * time.wall_s, "{sum} of {}", time.wall_s);
    assert!(time.ops.iter().all(|op| op.total_s() > 0.0) && time.elsewhere_s > 0.0);
}

#[test]
fn a_step_lasts_from_the_end_of_the_one_before() {
    let mut timeline = Timeline::new(3);
    timeline.begin(0, Key { op: "encode", part: "" }, Activity::Compute);
    for (start, done) in [(5_000, 9_000), (9_500, 15_000), (20_000, 22_000)] {
        timeline.first_step(start);
        timeline.step_done(done);
    }
    assert_eq!(timeline.summary(30_000).step_seconds, [4e-6, 6e-6, 7e-6]);
}

#[test]
fn a_clock_that_stands_still_or_steps_back_breaks_nothing() {
    let mut timeline = Timeline::new(0);
    timeline.begin(5_000, FORWARD, Activity::Compute);
    timeline.begin(4_000, ATTEND, Activity::Compute);
    timeline.end(7_000);
    let time = timeline.summary(7_000);
    assert_eq!((time.wall_s, of(&time, "forward.attend").compute_s), (7e-6, 2e-6));
}

#[test]
fn more_names_than_accounts_are_still_counted() {
    let mut timeline = Timeline::new(0);
    for index in 0..ACCOUNTS_MAX as u64 + 3 {
        let op: &'static str = Box::leak(format!("op{index}").into_boxed_str());
        timeline.begin(index, Key { op, part: "" }, Activity::Compute);
    }
    let end = ACCOUNTS_MAX as u64 + 3;
    let time = timeline.summary(end);
    assert_eq!(time.ops.len(), ACCOUNTS_MAX);
    let sum: f64 = time.ops.iter().map(OpTime::total_s).sum();
    assert!((sum - end as f64 / 1e9).abs() < 1e-15, "{sum}");
}
