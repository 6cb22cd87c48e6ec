//! Fuzzing with libFuzzer on the stable toolchain (no sanitizer: the code is safe Rust; panics, allocations and values that
//! do not come back are what is hunted). The corpus is committed; what a run finds new goes to `target/fuzz`.
//!
//! The targets are ordinary programs that link libFuzzer, so nothing is installed; the flags are those of cargo-fuzz, and
//! whoever has it may use it on the same folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// Memory a target's process may use, in MiB; what its code may allocate is far less and stands in `fuzz/src/cap.rs`.
const RSS_LIMIT_MIB: u32 = 2048;

/// Longest time for one input.
const INPUT_SECONDS_MAX: u32 = 20;

/// Seconds for each target in continuous integration.
const CI_SECONDS: u64 = 8;

/// Targets that run at once in continuous integration.
const CI_AT_ONCE: usize = 2;

/// What tells libFuzzer which way an input took. As cargo-fuzz has it, without a sanitizer.
const FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
];

/// The control: its decoder is wrong on purpose, and it is no target.
const CARELESS: &str = "careless";

/// Inputs of the control, and what each must be reported as; the last meets no fault.
const CARELESS_INPUTS: [(&[u8], Option<&str>); 4] = [
    (b"a\0\0\0\x10", Some("bytes of input: the cap is")),
    (b"p\0\0\0\x10", Some("out of range for slice")),
    (b"lost", Some("left == right")),
    (b"good", None),
];

/// The programs, built.
struct Targets {
    programs: PathBuf,
}

impl Targets {
    /// Flags would reach build scripts and procedural macros too, were the target not named.
    fn build() -> Result<Self> {
        let version = crate::command::output("rustc", &["-vV"])?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
        let args = ["build", "--release", "--bins", "--manifest-path", "fuzz/Cargo.toml", "--target", host];
        let flags = FLAGS.join("\x1f");
        crate::command::run_with("cargo", &args, &[("CARGO_ENCODED_RUSTFLAGS", &flags)])?;
        Ok(Targets { programs: Path::new("fuzz/target").join(host).join("release") })
    }

    /// Names of the targets: one for each file, the control left out.
    fn names() -> Result<Vec<String>> {
        let files = std::fs::read_dir("fuzz/fuzz_targets")?.collect::<Result<Vec<_>, _>>()?;
        let stem = |file: &std::fs::DirEntry| Some(file.path().file_stem()?.to_string_lossy().into_owned());
        let mut names: Vec<String> = files.iter().filter_map(stem).filter(|name| name != CARELESS).collect();
        names.sort();
        Ok(names)
    }

    fn program(&self, target: &str) -> Command {
        let mut command = Command::new(self.programs.join(target));
        let (rss, timeout) = (format!("-rss_limit_mb={RSS_LIMIT_MIB}"), format!("-timeout={INPUT_SECONDS_MAX}"));
        command.args([rss, timeout]).stdin(Stdio::null());
        command
    }

    /// Runs the whole corpus, then looks for more; output is the caller's to show.
    fn hunt(&self, target: &str, seconds: u64) -> Result<Command> {
        let (finds, artifacts) = (finds(target), format!("fuzz/artifacts/{target}/"));
        std::fs::create_dir_all(&finds)?;
        std::fs::create_dir_all(&artifacts)?;
        let corpus = Path::new("fuzz/corpus").join(target);
        ensure!(corpus.is_dir(), "{} is missing: every target has a committed corpus", corpus.display());
        let mut command = self.program(target);
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={artifacts}"));
        command.args(["-print_final_stats=1".as_ref(), finds.as_os_str(), corpus.as_os_str()]);
        Ok(command)
    }
}

/// Where new finds of a target go.
fn finds(target: &str) -> PathBuf {
    Path::new("target/fuzz").join(target)
}

/// One line for a run that ended well: what it executed.
fn summary(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let number = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map_or("?", str::trim).to_owned();
    format!("{} inputs, {} MiB", number("stat::number_of_executed_units:"), number("stat::peak_rss_mb:"))
}

/// Runs to the end; a failure shows everything the target said.
fn finish(target: &str, mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start the target {target}"))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("target {target} failed: its input is in fuzz/artifacts/{target}");
    }
    Ok(summary(&output))
}

/// The three checks each report what breaks them, and nothing else.
fn control(targets: &Targets) -> Result<()> {
    let dir = finds(CARELESS);
    std::fs::create_dir_all(&dir)?;
    for (input, expected) in CARELESS_INPUTS {
        let file = dir.join("input");
        std::fs::write(&file, input)?;
        let mut command = targets.program(CARELESS);
        command.arg(format!("-artifact_prefix={}/", dir.display())).arg(&file);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let input = String::from_utf8_lossy(input);
        match expected {
            None => ensure!(output.status.success(), "the control fails on a good input: {said}"),
            Some(why) => ensure!(
                !output.status.success() && said.contains(why),
                "a careless decoder was not caught on {input:?}: {said}"
            ),
        }
    }
    println!("fuzz: a careless decoder is caught by each of the three checks");
    Ok(())
}

/// The bounded form: the control, then each target over its corpus and for a few seconds more.
fn ci() -> Result<()> {
    let targets = Targets::build()?;
    control(&targets)?;
    let waiting = Mutex::new(Targets::names()?);
    let worker = || -> Result<()> {
        loop {
            let target = waiting.lock().expect("no worker panics while it takes a name").pop();
            let Some(target) = target else { return Ok(()) };
            let begun = Instant::now();
            let done = finish(&target, targets.hunt(&target, CI_SECONDS)?)?;
            println!("fuzz: {target:<10} {done}, {:.0} s", begun.elapsed().as_secs_f64());
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CI_AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("workers return their errors"))
    })
}

/// The long form: one target, or each in turn, with libFuzzer's own progress.
fn long(target: Option<&str>, seconds: u64) -> Result<()> {
    ensure!(seconds > 0, "--seconds must be at least 1");
    let targets = Targets::build()?;
    control(&targets)?;
    let names = match target {
        Some(target) => vec![target.to_owned()],
        None => Targets::names()?,
    };
    for target in names {
        println!("fuzz: {target} for {seconds} s");
        let status = targets.hunt(&target, seconds)?.status()?;
        ensure!(status.success(), "target {target} failed: its input is in fuzz/artifacts/{target}");
    }
    Ok(())
}

/// Keeps of corpus and finds together the fewest and shortest inputs that reach as much, and makes them the corpus. Files
/// with names of their own (goldens, regressions) are kept as they are.
fn minimise(target: Option<&str>) -> Result<()> {
    let targets = Targets::build()?;
    let names = match target {
        Some(target) => vec![target.to_owned()],
        None => Targets::names()?,
    };
    for target in names {
        let (corpus, finds) = (Path::new("fuzz/corpus").join(&target), finds(&target));
        std::fs::create_dir_all(&finds)?;
        let least = finds.with_extension("least");
        let _ = std::fs::remove_dir_all(&least);
        std::fs::create_dir_all(&least)?;
        for file in std::fs::read_dir(&corpus)?.collect::<Result<Vec<_>, _>>()? {
            if is_hash(&file.file_name().to_string_lossy()) {
                std::fs::rename(file.path(), finds.join(file.file_name()))?;
            } else {
                std::fs::copy(file.path(), least.join(file.file_name()))?;
            }
        }
        let mut command = targets.program(&target);
        command.arg("-set_cover_merge=1").args([&least, &finds]);
        finish(&target, command)?;
        for file in std::fs::read_dir(&least)?.collect::<Result<Vec<_>, _>>()? {
            std::fs::copy(file.path(), corpus.join(file.file_name()))?;
        }
    }
    Ok(())
}

/// libFuzzer names its finds by their SHA-1.
fn is_hash(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Bounded, for continuous integration.
    Ci,
    /// For so many seconds each.
    Long(u64),
    /// Make the corpus small.
    Minimise,
}

/// The chore.
pub fn run(target: Option<&str>, form: Form) -> Result<()> {
    match form {
        Form::Ci => ci(),
        Form::Long(seconds) => long(target, seconds),
        Form::Minimise => minimise(target),
    }
}
