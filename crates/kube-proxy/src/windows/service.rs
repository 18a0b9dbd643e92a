//! The program as a service of Windows, and who ends it.
//!
//! The service control manager wants the first thread, and starts the service on another one. It tells the service to stop on a
//! third.

use std::ffi::OsString;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};
use windows_service::{define_windows_service, service_dispatcher};

use crate::serve::Ended;

/// A service that has its process alone is found by that, whatever its name is.
const NAME: &str = "kube-proxy";
/// How long the end may take: the configured endings, and events that are still to be written.
const STOPPING: Duration = Duration::from_secs(30);

type Serve = Box<dyn FnOnce() -> anyhow::Result<Ended> + Send>;

/// What goes between the threads, since the interface passes nothing through.
struct Shared {
    serve: Option<Serve>,
    outcome: Option<anyhow::Result<()>>,
    stop: Option<watch::Receiver<bool>>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { serve: None, outcome: None, stop: None });

fn shared<T>(work: impl FnOnce(&mut Shared) -> T) -> T {
    work(&mut SHARED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Serves as a service, until that is stopped.
///
/// # Errors
/// Those of `serve`; or it was not the service control manager who started the program.
pub(crate) fn run(serve: Serve) -> anyhow::Result<()> {
    shared(|shared| shared.serve = Some(serve));
    service_dispatcher::start(NAME, service_main)
        .context("run as a service, as --windows-service asks: is it one that started the program?")?;
    shared(|shared| shared.outcome.take()).context("the service did not begin")?
}

define_windows_service!(service_main, begin);

fn begin(_arguments: Vec<OsString>) {
    let outcome = serve();
    shared(|shared| shared.outcome = Some(outcome));
}

fn serve() -> anyhow::Result<()> {
    let serve = shared(|shared| shared.serve.take()).context("the service was begun twice")?;
    let (sender, receiver) = watch::channel(false);
    shared(|shared| shared.stop = Some(receiver));
    let handle = move |control| match control {
        ServiceControl::Stop | ServiceControl::Shutdown | ServiceControl::Preshutdown => {
            sender.send_replace(true);
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    let status = service_control_handler::register(NAME, handle).context("register the service")?;
    tell(status, ServiceState::Running, 0)?;
    let outcome = serve();
    let code = match &outcome {
        Ok(Ended::Asked) => 0,
        // Whoever wants the service started again sets recovery actions, which follow an error.
        Ok(Ended::ToRestart) | Err(_) => 1,
    };
    tell(status, ServiceState::Stopped, code)?;
    outcome.map(drop)
}

fn tell(status: ServiceStatusHandle, state: ServiceState, code: u32) -> anyhow::Result<()> {
    let accepted = if state == ServiceState::Running {
        ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN
    } else {
        ServiceControlAccept::empty()
    };
    let told = status.set_service_status(ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted: accepted,
        exit_code: if code == 0 { ServiceExitCode::NO_ERROR } else { ServiceExitCode::ServiceSpecific(code) },
        checkpoint: 0,
        wait_hint: STOPPING,
        process_id: None,
    });
    told.context("tell the service's state")
}

/// Who ends the program: the console's keys, or the service control manager.
pub(crate) struct Stop {
    console: cli::Endings,
    service: Option<watch::Receiver<bool>>,
}

/// Has nobody end it in another way from now on.
pub(crate) fn stop() -> io::Result<Stop> {
    Ok(Stop { console: cli::Endings::handle(false)?, service: shared(|shared| shared.stop.clone()) })
}

impl Stop {
    /// Returns when somebody wants it.
    pub(crate) async fn recv(&mut self) {
        let Self { console, service } = self;
        let told = async {
            match service {
                // Whoever would tell it lives as long as the service.
                Some(stop) => drop(stop.wait_for(|stop| *stop).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = console.recv() => {}
            () = told => {}
        }
    }
}
