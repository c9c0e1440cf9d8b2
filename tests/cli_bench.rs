//! The commands that measure, on models so small that the figures mean nothing.

use serde_json::Value;

use crate::cli_process::ditmesh;

/// A scaling bench that takes a second or two.
fn scaling(transport: &str, more: &[&str]) -> Vec<String> {
    let small = "bench scaling --hidden 48 --heads 4 --blocks 2 --latent 8 --steps 2 --rounds 1 \
                 --python no-such-python --transport";
    let words = small.split_whitespace().chain([transport]).chain(more.iter().copied());
    words.map(str::to_owned).collect()
}

fn run(args: &[String]) -> crate::cli_process::Ended {
    let folder = tempfile::tempdir().unwrap();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    ditmesh(folder.path(), &args)
}

#[test]
fn scaling_on_processes_measures_what_was_agreed() {
    let ended = run(&scaling("quic", &["--json"]));
    let report: Value = serde_json::from_str(ended.done()).unwrap();
    for key in ["t1_s", "ceiling"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{report:#}");
    }
    let efficiency = report["efficiency"].as_object().unwrap();
    let keys = ["cfg2", "ulysses2", "ring2", "pipefusion2", "pipefusion2_async"];
    assert_eq!(efficiency.len(), keys.len());
    assert!(keys.iter().all(|key| efficiency.contains_key(*key)));
    for key in keys {
        assert!(efficiency[key].as_f64().unwrap() > 0.0, "{key} in {report:#}");
    }
    assert!(report["torch_ratio"].is_null());
    // Both ranks tell where their time went, and it adds up.
    for rank in report["breakdown"]["ulysses2"].as_array().unwrap() {
        let seconds = |op: &Value, part: &str| op[part].as_f64().unwrap();
        let ops = rank["ops"].as_array().unwrap();
        let parts = ["compute_s", "wait_s", "send_s", "serialise_s", "overhead_s"];
        let sum: f64 = ops.iter().flat_map(|op| parts.map(|part| seconds(op, part))).sum();
        let wall = rank["wall_s"].as_f64().unwrap();
        let sum = sum + rank["elsewhere_s"].as_f64().unwrap();
        assert!((sum - wall).abs() < 0.01 * wall, "{sum} of {wall} s");
    }
    assert!(ended.stderr.contains("torch is not measured"), "{}", ended.stderr);
}

#[test]
fn scaling_in_one_process_prints_a_table() {
    let ended = run(&scaling("in-process", &["--only", "pipefusion2"]));
    let text = ended.done();
    for part in ["one rank", "two jobs of one at once", "pipefusion2_async", "(to reach: 0.97)"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains("cfg2"), "{text}");
}

#[test]
fn scaling_over_ucx_is_measured_where_ucx_is() {
    if let Err(error) = ditmesh_transport::ucx::version() {
        return eprintln!("skipped: {error}");
    }
    let ended = run(&scaling("ucx", &["--only", "ulysses2"]));
    assert!(ended.done().contains(", ucx; 1 rounds"), "{}", ended.done());
}

#[test]
fn orchestration_is_measured_on_every_mesh() {
    let small = "bench overhead --hidden 48 --heads 4 --blocks 2 --latent 8 --steps 2 --json";
    for transport in ["quic", "in-process"] {
        let args = small.split_whitespace().chain(["--transport", transport]);
        let ended = run(&args.map(str::to_owned).collect::<Vec<_>>());
        let report: Value = serde_json::from_str(ended.done()).unwrap();
        assert!(report["t1_s"].as_f64().unwrap() > 0.0);
        let meshes = report["meshes"].as_array().unwrap();
        assert_eq!(meshes.len(), 4, "{report:#}");
        for mesh in meshes {
            // Nothing takes no time.
            assert!(mesh["orchestration_s"].as_f64().unwrap() > 0.0, "{report:#}");
            let misses = mesh["share"].as_f64().unwrap() > report["target"].as_f64().unwrap();
            assert_eq!(mesh["misses"], misses, "{report:#}");
        }
    }
}

#[test]
fn what_cannot_be_measured_is_wrong_usage() {
    run(&scaling("in-process", &["--cores", "0,0"])).refused(2, &["--cores", "two of the cores"]);
    run(&scaling("quic", &["--gpus", "0"])).refused(2, &["--gpus", "not two"]);
    let odd = "bench scaling --hidden 50 --heads 4".split_whitespace().map(str::to_owned);
    run(&odd.collect::<Vec<_>>()).refused(2, &["50 does not divide by 4 heads", "52 would"]);
}

#[test]
fn a_device_profile_is_kept_where_plans_look_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let manifest =
        "schema = 1\n[cluster]\nname = \"demo\"\n[[node]]\nname = \"a\"\n[[node.device]]";
    std::fs::write(folder.path().join("cluster.toml"), manifest).unwrap();
    let small = "bench device --cluster cluster.toml --hidden 32 --heads 4 --each-ms 1 --json";
    let ended = ditmesh(folder.path(), &small.split_whitespace().collect::<Vec<_>>());
    let printed: Value = serde_json::from_str(ended.done()).unwrap();
    let kept = std::fs::read(folder.path().join(".ditmesh/cache/calibration.json")).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    assert_eq!(kept["devices"]["cpu-1"], printed["profile"]);
    assert!(printed["profile"]["gemm_flops_per_s"]["f32"].as_f64().unwrap() > 0.0);
    assert_eq!(printed["by_tokens"]["attention"].as_array().unwrap().len(), 3);
}

#[test]
fn transport_measures_every_way_that_is_there() {
    let small = "bench transport --rounds 2 --message-mib 1 --messages 2 --largest-mib 1 --json \
                 --against tcp,tls,gloo,ucx_perftest --python no-such-python";
    let words: Vec<_> = small.split_whitespace().map(str::to_owned).collect();
    let ended = run(&words);
    let report: Value = serde_json::from_str(ended.done()).unwrap();
    let ways = report["ways"].as_array().unwrap();
    for name in ["quic", "quic-1500", "quinn-default", "tcp", "tls"] {
        let way = ways.iter().find(|way| way["name"] == name).unwrap();
        for figure in ["gb_per_s", "cpu_s_per_gb", "round_trip_us"] {
            assert!(way[figure]["median"].as_f64().unwrap() > 0.0, "{figure} of {way:#}");
        }
    }
    let ratios = report["ratios"].as_object().unwrap();
    let promised = [
        "quic_jumbo_over_tls",
        "quic_1500_over_tls",
        "quic_over_quinn_default",
        "ucx_tcp_over_perftest",
        "ucx_shm_over_perftest",
        "ucx_tcp_over_gloo",
        "quic_rtt_over_tcp",
    ];
    assert!(ratios.len() == promised.len() && promised.iter().all(|key| ratios.contains_key(*key)));
    assert!(ratios["quic_jumbo_over_tls"].as_f64().unwrap() > 0.0);
    assert!(ratios["ucx_tcp_over_gloo"].is_null());
    if std::env::var("DITMESH_TEST_UCX").is_ok_and(|ucx| ucx == "required") {
        for key in ["ucx_tcp_over_perftest", "ucx_shm_over_perftest"] {
            assert!(ratios[key].as_f64().unwrap() > 0.0, "{key} of {report:#}");
        }
    }
    assert!(report["not_measured"].to_string().contains("gloo"), "{report:#}");
    let sizes = report["sizes"].as_array().unwrap();
    assert!(sizes.iter().any(|row| row["name"] == "quic" && row["bytes"] == 1024));
}

/// Processes are really killed and stopped; what is aimed at holds, with room for a machine that
/// does other things besides.
#[test]
fn recovery_measures_every_loss() {
    let ended = run(&["bench", "recovery", "--rounds", "1", "--json"].map(str::to_owned));
    let report: Value = serde_json::from_str(ended.done()).unwrap();
    let most = [
        ("detect_exit_s", 1.0),
        ("detect_stuck_s", 2.25),
        ("resume_s", 2.0),
        ("overhead_s", 2.5),
        ("join_s", 3.0),
    ];
    for (key, most) in most {
        assert!(report[key].as_f64().unwrap() < most, "{key} is to be below {most} s: {report:#}");
    }
    // Silence has to last before it means something.
    assert!(report["detect_stuck_s"].as_f64().unwrap() > 1.0, "{report:#}");
    assert!(report["steps_redone"].as_u64().unwrap() <= 1, "{report:#}");
}

#[test]
fn transport_of_a_cluster_without_links_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = "schema = 1\n[cluster]\nname = \"one\"\n[[node]]\nname = \"a\"\n[[node.device]]\n\
                    threads = 1\n[[model]]\nname = \"emoji\"\npath = \"built-in\"\n[[group]]\n\
                    model = \"emoji\"\ndegrees = {}\n";
    std::fs::write(folder.path().join("cluster.toml"), manifest).unwrap();
    let ended = ditmesh(folder.path(), &["bench", "transport", "--cluster", "cluster.toml"]);
    assert!(ended.stderr.contains("no links"), "{}", ended.stderr);
}

/// Three nodes on addresses of their own: three links, each named, in JSON and in the table.
#[test]
fn transport_of_a_cluster_measures_every_pair_of_its_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let node = |(name, address): (&str, &str)| {
        format!("[[node]]\nname = \"{name}\"\naddress = \"{address}\"\n[[node.device]]\n")
    };
    // The last one is nobody's: its pairs are told, and the others are measured.
    let nodes = [("a", "127.0.0.1"), ("b", "127.0.0.2"), ("c", "127.0.0.3"), ("d", "192.0.2.1")];
    let nodes = nodes.map(node).concat();
    let manifest = format!("schema = 1\n[cluster]\nname = \"three\"\n{nodes}");
    std::fs::write(folder.path().join("cluster.toml"), manifest).unwrap();
    let small = "bench transport --cluster cluster.toml --rounds 1 --message-mib 1 --messages 2 \
                 --largest-mib 1 --only quic";
    let words: Vec<_> = small.split_whitespace().collect();
    let ended = ditmesh(folder.path(), &[&words[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(ended.done()).unwrap();
    let named = |links: &Value| {
        let of = |link: &Value| format!("{}+{}", link["link"][0], link["link"][1]);
        links.as_array().unwrap().iter().map(of).collect::<Vec<_>>().join(" ").replace('"', "")
    };
    assert_eq!(named(&report["links"]), "node a+node b node a+node c node b+node c");
    assert_eq!(named(&report["not_measured"]), "node a+node d node b+node d node c+node d");
    assert!(report["not_measured"].to_string().contains("192.0.2.1 is no address"), "{report:#}");
    for link in report["links"].as_array().unwrap() {
        let way = &link["ways"][0];
        assert_eq!(way["name"], "quic");
        assert!(way["gb_per_s"]["median"].as_f64().unwrap() > 0.0, "{link:#}");
        assert!(way["round_trip_us"]["median"].as_f64().unwrap() > 0.0, "{link:#}");
    }
    let text = ditmesh(folder.path(), &words);
    for line in ["node a - node b  quic", "node a - node c  quic", "node b - node c  quic"] {
        assert!(text.done().contains(line), "{line:?} is not in {}", text.stdout);
    }
    assert!(text.stdout.contains("node a and node d are not measured"), "{}", text.stdout);
}
