//! The server that the configuration names, ready to be dialled.

use std::sync::Arc;

use crate::config::start_error::RunError;
use crate::config::{Config, Upstream};
use crate::tls::upstream;
use crate::tls::upstream::TlsMode;
use crate::upstream::connector::{Outage, Target, Tls};

pub(crate) fn target(config: &Config) -> Result<Target, RunError> {
    let mode = config.upstream.tls.mode;
    let tls = match mode {
        TlsMode::Disable => Tls::Disable,
        _ => {
            let connector = upstream::connector(&config.upstream.tls)
                .map_err(|error| RunError::Tls(error.to_string()))?;
            if mode == TlsMode::Prefer { Tls::Prefer(connector) } else { Tls::Require(connector) }
        }
    };
    let Upstream { postgres, attrs, .. } = &config.upstream;
    let (postgres, attrs, outage) = (postgres.clone(), *attrs, Outage::none());
    Ok(Target { postgres, tls, attrs, outage, passwords: Arc::default() })
}
