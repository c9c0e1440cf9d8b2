//! Where the time of real runs went.

use std::time::Instant;

use candle_core::DType;
use ditmesh_actors::plan::{Plan, resolve};
use ditmesh_actors::request::{GenerateRequest, OpTime, OutputKind, RankReport};
use ditmesh_actors::timeline::Stopwatch;
use ditmesh_model::phase::Phase;
use ditmesh_model::pipeline::describe;

use crate::harness::{Golden, degrees, run};

const PIPELINE: &str = "sigma_8x8";

fn named<'r>(report: &'r RankReport, op: &str) -> &'r OpTime {
    let found = report.time.ops.iter().find(|time| time.op == op);
    found.unwrap_or_else(|| panic!("rank {} has no {op}: {:?}", report.rank, report.time.ops))
}

#[test]
fn a_report_accounts_for_all_of_the_time() {
    let golden = Golden::load(PIPELINE, "square");
    let request = golden.request(8);
    let request = GenerateRequest {
        height: None,
        width: None,
        latents: None,
        output: OutputKind::Image,
        num_pipeline_patch: Some(2),
        ..request
    };
    let outcome = run(&golden.dir, degrees(1, 2, 2), &request);
    let steps = request.num_inference_steps as usize;
    // The first step in one pass, the others in two.
    let passes = (1 + 2 * (steps - 1)) as u64;
    for report in &outcome.ranks {
        let time = &report.time;
        let sum = time.ops.iter().map(OpTime::total_s).sum::<f64>() + time.elsewhere_s;
        assert!((sum - time.wall_s).abs() < 1e-6 * time.wall_s, "{sum} of {}", time.wall_s);
        // How much it is depends on what else the machine runs.
        assert!((0.0..time.wall_s).contains(&time.elsewhere_s), "{time:?}");
        let blocks = u64::from(report.blocks.1 - report.blocks.0);
        assert_eq!(named(report, "forward").count, passes);
        let attend = named(report, "forward.attend");
        // For the queries of both ranks of the sequence group.
        assert_eq!(attend.count, 2 * passes * blocks);
        assert!(attend.compute_s > 0.0 && attend.wait_s == 0.0, "{attend:?}");
        let exchange = named(report, "forward.ulysses_qkv");
        assert!(exchange.serialise_s > 0.0 && exchange.wait_s > 0.0, "{exchange:?}");
        assert_eq!(report.wait_seconds, time.ops.iter().map(|op| op.wait_s).sum::<f64>());
        let last = report.rank >= 2;
        assert_eq!(time.step_seconds.len(), if last { steps } else { 0 });
        if last {
            assert!(named(report, "receive.activation").wait_s > 0.0);
            let stepping: f64 = time.step_seconds.iter().sum();
            assert!(stepping > 0.0 && stepping < time.wall_s, "{time:?}");
        }
    }
    let decoding = named(&outcome.ranks[2], "decode");
    assert!(decoding.compute_s > 0.0 && decoding.count == 1, "{decoding:?}");
}

/// A change of what is under way costs two looks at the clock and a search in a short list. The
/// bound is far above that and far below what an allocation or a lock for each would add up to.
#[test]
fn keeping_time_costs_next_to_nothing() {
    const CHANGES: u32 = 100_000;
    const CHANGE_NS_MAX: u128 = 5_000;
    let golden = Golden::load(PIPELINE, "square");
    let spec = describe(&golden.dir, DType::F32).unwrap();
    let mesh = degrees(1, 1, 1);
    for timeline in [false, true] {
        let request = GenerateRequest { timeline, ..golden.request(8) };
        let request = GenerateRequest { latents: None, height: None, width: None, ..request };
        let run = resolve::resolve(&request, &spec, mesh).unwrap();
        let mut clock = Stopwatch::start(&Plan::new(mesh, &spec, &run).unwrap());
        let started = Instant::now();
        for block in 0..CHANGES as usize {
            clock.phase(&Phase::ProjectOut(block));
        }
        let change = started.elapsed().as_nanos() / u128::from(CHANGES);
        println!("a change of phase costs {change} ns (recorded: {timeline})");
        assert!(change < CHANGE_NS_MAX, "{change} ns");
        assert_eq!(clock.summary().ops[0].count, u64::from(CHANGES));
    }
}
