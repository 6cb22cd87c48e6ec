//! Scratch.
use simulation::{Options, scenario};
fn main() {
    let mut args = std::env::args().skip(1);
    let from: u64 = args.next().unwrap().parse().unwrap();
    let to: u64 = args.next().unwrap().parse().unwrap();
    if std::env::var("FARSHORE_LOG").is_ok() {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_env("FARSHORE_LOG")).without_time().init();
    }
    let mut cov = simulation::fault::Coverage::default();
    for seed in from..to {
        let t = std::time::Instant::now();
        match scenario::run(Options::new(seed)) {
            Ok(o) => {
                cov.add(&o.coverage);
                println!("seed {seed}: {} ops, {} positions, {} groups, {} compares, {} resend, {} faults, {:?} virtual, {:?} real, {:?}", o.operations, o.positions, o.groups, o.compares, o.resend_checks, o.coverage.total(), o.time, t.elapsed(), o.network)
            }
            Err(e) => println!("BROKEN {e} ({:?})", t.elapsed()),
        }
    }
    println!("{cov}");
}
