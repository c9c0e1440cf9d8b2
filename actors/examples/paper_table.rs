//! Prints xDiT's Ethernet table beside what the simulator predicts, as Markdown; `--fit` fits the
//! three constants again first.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "it prints, from files beside it")]

#[path = "../tests/paper.rs"]
mod paper;

fn main() {
    let started = std::time::Instant::now();
    let constants = match std::env::args().nth(1).as_deref() {
        Some("--fit") => paper::fit().0,
        _ => paper::FITTED,
    };
    println!(
        "constants: {:.2} GB/s within a node (each device), {:.2} GB/s between nodes (each node), \
         {:.0} us a message\n",
        constants.inside_gb_s, constants.uplink_gb_s, constants.message_us
    );
    println!("| row | devices | paper, s | predicted, s | error | mesh | |");
    println!("|---|---|---|---|---|---|---|");
    let (mut fitted, mut held_out) = (Vec::new(), Vec::new());
    for row in paper::TABLE {
        for found in paper::predictions(row, &constants) {
            println!(
                "| {} {}x{} | {} | {} | {:.2} | {:+.0} % | {} | {} |",
                row.model,
                row.size.0,
                row.size.1,
                found.figure.devices,
                found.figure.seconds,
                found.seconds,
                100.0 * found.error(),
                found.mesh,
                if row.fitted { "fitted" } else { "held out" },
            );
            let side = if row.fitted { &mut fitted } else { &mut held_out };
            side.push(found);
        }
    }
    for (name, side) in [("fitted", &fitted), ("held out", &held_out)] {
        let (mean, median) = paper::errors(side.iter());
        let (mean, median) = (100.0 * mean, 100.0 * median);
        println!("\n{name}: mean absolute error {mean:.0} %, median {median:.0} %");
    }
    println!("\nloss of the fitted rows: {:.4}", paper::misfit(&constants));
    eprintln!("took {:.1} s", started.elapsed().as_secs_f64());
}
