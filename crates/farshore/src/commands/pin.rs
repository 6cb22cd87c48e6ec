//! `farshore pin` and `farshore unpin`: a point held whatever the policy says, and no longer.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use crate::cli::{Global, PinArgs};
use crate::context;
use crate::control::{ControlError, PinRequest, Socket, call};
use crate::failure::usage;
use crate::output::Output;

/// A pin waits for the applier's next commit: through a short outage, not for ever.
const PIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Asks the applier.
pub async fn run(global: &Global, args: &PinArgs, hold: bool, output: Output) -> anyhow::Result<()> {
    let config = context::config(global)?;
    if config.machine(&args.machine).is_none() {
        return Err(usage(format!("no machine {} in {}", args.machine, config.file.display())));
    }
    let request = PinRequest { machine: args.machine.clone(), point: args.point.to_string(), hold };
    let socket = Socket::Applier.path(&config);
    match call(&socket, "/pin", Some(&serde_json::to_value(&request)?), PIN_TIMEOUT).await {
        Ok(_) => {}
        Err(error @ ControlError::Dead { .. }) => {
            return Err(error).context("the applier does not run: start it first");
        }
        Err(error) => {
            return Err(error).with_context(|| format!("point {} of {} was not changed", args.point, args.machine));
        }
    }
    let object = json!({ "machine": args.machine, "point": args.point.to_string(), "pinned": hold });
    output.print(&object, || match hold {
        true => format!("Pinned: point id:{} of {} stays until it is unpinned", args.point, args.machine),
        false => format!("Unpinned: point id:{} of {} stays as long as the policy says", args.point, args.machine),
    });
    Ok(())
}
