//! Entry points for fuzzing what users type: the configuration and selectors. Nothing may panic, and what is accepted
//! must keep its promises.

use std::path::Path;

use crate::config::Config;

/// Any bytes as a configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("/tmp/farshore.toml");
    match Config::parse(path, text) {
        Ok(config) => {
            for machine in &config.machines {
                let socket = crate::control::Socket::Agent(machine.name.clone()).path(&config);
                assert!(socket.parent() == Some(config.run_dir().as_path()), "a name left its directory: {socket:?}");
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error of several lines: {error}"),
    }
}

/// Any bytes as a selector: what is read prints as something that reads the same.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = text.parse::<model::Selector>() {
        assert_eq!(selector.to_string().parse(), Ok(selector), "{text:?}");
    }
}
