//! Looking up and measuring, with a shell in the place of the process that measures.

use std::path::Path;

use super::*;
use crate::cost::device::Rates;

fn profile(rate: f64) -> DeviceProfile {
    let gemm_flops_per_s = Rates::all(rate);
    DeviceProfile { gemm_flops_per_s, ..DeviceProfile::unmeasured_cpu(1) }
}

/// An agent of two devices of one thread and one of three, where `script` measures.
fn agent(folder: &Path, script: &str) -> Measuring {
    let device = |threads| DeviceSection { threads, ..DeviceSection::default() };
    Measuring {
        devices: vec![device(None), device(Some(3)), device(Some(1))],
        program: Some(["sh", "-c", script].map(OsString::from).to_vec()),
        folders: vec![folder.join("cluster"), folder.join("user")],
        lock: folder.join("lock"),
        processor: "Fast 9000".into(),
        longest: Duration::from_secs(20),
    }
}

/// Notes each device that it measures in a file, and says these figures.
fn script(folder: &Path, spread: f64) -> String {
    let measured = Measured { profile: profile(5e9), spread: Some(spread) };
    let said = serde_json::to_string(&measured).expect("json");
    format!("read line; echo \"$line\" >> {}/measured; echo '{said}'", folder.display())
}

fn times_measured(folder: &Path) -> usize {
    std::fs::read_to_string(folder.join("measured")).map_or(0, |text| text.lines().count())
}

fn kinds(speeds: &[DeviceSpeed]) -> Vec<(u32, &str)> {
    speeds.iter().map(|speed| (speed.index, speed.kind.as_str())).collect()
}

const ALL: [(u32, &str); 3] = [(0, "cpu-1"), (1, "cpu-3"), (2, "cpu-1")];

#[tokio::test]
async fn each_kind_is_measured_once_on_a_machine_whoever_asks_and_when() {
    let folder = tempfile::tempdir().expect("a folder");
    let agent = || agent(folder.path(), &script(folder.path(), 1.0));
    let (one, other) = tokio::join!(agent().speeds(), agent().speeds());
    assert_eq!((kinds(&one), &one), (ALL.to_vec(), &other));
    assert_eq!(one[1].profile, profile(5e9));
    assert_eq!(times_measured(folder.path()), 2, "two kinds");
    let later = Measuring { program: None, ..agent() };
    assert_eq!(later.speeds().await, one, "kept where nothing is to be measured");
    assert!(!folder.path().join("cluster").exists(), "for all clusters of this user");
}

#[tokio::test]
async fn what_nobody_measured_stays_unmeasured_where_nothing_is_to_be_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let agent = Measuring { program: None, ..agent(folder.path(), "") };
    assert_eq!(agent.speeds().await, []);
}

#[tokio::test]
async fn a_device_goes_on_unmeasured_when_the_time_is_over_or_measuring_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let pid = folder.path().join("pid");
    let hangs = format!("echo $$ > {}; exec sleep 60", pid.display());
    let longest = Duration::from_millis(300);
    let agent = |script: &str| Measuring { longest, ..agent(folder.path(), script) };
    let begun = Instant::now();
    assert_eq!(agent(&hangs).speeds().await, []);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let pid = std::fs::read_to_string(pid).expect("it began");
    ended(pid.trim()).await;
    for fails in ["exit 3", "echo nonsense", "read line; echo '{\"spread\": 1}'"] {
        assert_eq!(agent(fails).speeds().await, [], "{fails}");
    }
    let negative = Measured { profile: profile(-1.0), spread: Some(1.0) };
    let negative = serde_json::to_string(&negative).expect("json");
    assert_eq!(agent(&format!("echo '{negative}'")).speeds().await, []);
    let lock = File::create(folder.path().join("lock")).expect("a file");
    lock.lock().expect("locked");
    let script = script(folder.path(), 1.0);
    assert_eq!(agent(&script).speeds().await, [], "another agent measures and does not end");
    drop(lock);
    assert_eq!(kinds(&agent(&script).speeds().await), ALL);
}

#[tokio::test]
async fn what_was_measured_when_the_time_is_over_counts_and_is_not_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, next] = [4e9, 5e9].map(|rate| {
        let measured = Measured { profile: profile(rate), spread: None };
        serde_json::to_string(&measured).expect("json")
    });
    let script = format!("read line; echo '{first}'; echo '{next}'; exec sleep 60");
    let longest = Duration::from_secs(2);
    let agent = || Measuring { longest, ..agent(folder.path(), &script) };
    let speeds = agent().speeds().await;
    assert_eq!(kinds(&speeds), [(0, "cpu-1"), (2, "cpu-1")], "no time is left for the other");
    assert_eq!(speeds[0].profile, profile(5e9));
    assert_eq!(Measuring { program: None, ..agent() }.speeds().await, []);
}

#[tokio::test]
async fn an_agent_that_ends_takes_the_process_that_measures_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let pid = folder.path().join("pid");
    let hangs = format!("echo $$ > {}; exec sleep 60", pid.display());
    // Longer than this test waits.
    let longest = Duration::from_secs(60);
    let under_way = Measuring { longest, ..agent(folder.path(), &hangs) }.begin(|_| {});
    let deadline = Instant::now() + Duration::from_secs(20);
    let written = || std::fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n'));
    while !written() {
        assert!(Instant::now() < deadline, "it does not begin");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    drop(under_way);
    ended(std::fs::read_to_string(&pid).expect("it began").trim()).await;
}

/// Waits until a process has ended.
async fn ended(pid: &str) {
    let stat = format!("/proc/{pid}/stat");
    let alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    let deadline = Instant::now() + Duration::from_secs(20);
    while alive() {
        assert!(Instant::now() < deadline, "{pid} lives on");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

#[tokio::test]
async fn figures_that_others_spoilt_are_used_and_not_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let agent = || agent(folder.path(), &script(folder.path(), 1.5));
    assert_eq!(kinds(&agent().speeds().await), ALL);
    assert_eq!(times_measured(folder.path()), 2, "the second device of a kind is like the first");
    assert_eq!(kinds(&agent().speeds().await), ALL);
    assert_eq!(times_measured(folder.path()), 4);
}

#[tokio::test]
async fn a_profile_of_another_processor_is_not_taken_for_one_of_this_machine() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = |processor: &str, rate| DeviceProfile { processor: processor.into(), ..profile(rate) };
    let mut kept = Calibration::default();
    kept.devices.insert("cpu-1".into(), of("Slow 1000", 1e9));
    kept.devices.insert("cpu-3".into(), of("Fast 9000", 3e9));
    kept.save(&folder.path().join("cluster")).expect("written");
    let speeds = agent(folder.path(), &script(folder.path(), 1.0)).speeds().await;
    assert_eq!(kinds(&speeds), ALL);
    let rates = speeds.iter().map(|speed| speed.profile.gemm_flops_per_s.f32);
    assert_eq!(rates.collect::<Vec<_>>(), [5e9, 3e9, 5e9]);
    assert_eq!(times_measured(folder.path()), 1);
}
