//! The command line and the configuration file of kube-proxy: text in, checked values out.
//!
//! Flow: arguments → [`CommandLine`] → [`load()`] with the text of the file → [`Loaded`]: how to log, what to tell the operator,
//! and a [`Config`] or the reasons why there is none. Nothing here does I/O, looks at the environment or logs; the program
//! reads the file, asks the host which modes it can run, and passes both in.
//!
//! Each flag is defined once (`flags`), each field of the file once (`v1alpha1`), and what has no effect here once (`effects`,
//! `gates`); the parser, the help, the documentation, the completions and the manual page are made from these.
//!
//! Rules and names are those of kube-proxy v1.36 (`cmd/kube-proxy/app`, `pkg/proxy/apis/config`).
#![forbid(unsafe_code)]

mod command_line;
mod decode;
pub mod docs;
mod duration;
mod effects;
mod field;
mod file;
mod flag;
mod flags;
mod gates;
mod go;
mod listener;
mod load;
mod mode;
mod mode_section;
mod note;
mod platform;
mod quantity;
mod settings;
pub mod v1alpha1;
mod validate;
mod version;
mod yaml;

pub use command_line::{Action, CommandLine, Parsed, UsageError, command};
pub use decode::FlushFrequency;
pub use duration::{DurationError, GoDuration};
pub use field::{FieldError, FieldErrors};
pub use file::FileError;
pub use gates::{
    ALLOW_SERVICE_EXTERNAL_IPS, COMPONENT_FLAGZ, COMPONENT_STATUSZ, GATES, Gate, GateError, Gates,
    NFTABLES_LOCALHOST_NODE_PORTS, Stage,
};
pub use load::{CompleteError, ConfigError, Loaded, load};
pub use mode::{Mode, ModeSupport};
pub use note::{Level, Note};
pub use platform::Platform;
pub use quantity::{Quantity, QuantityError};
pub use settings::{
    Canary, ClientConnection, Collector, Config, Conntrack, ContentType, DetectLocal, Ebpf, Ipvs, LogFormat,
    Logging, NodePortAddresses, ServiceMetrics, ServiceSeries, Tracing, Windows,
};
pub use validate::node_name;
pub use version::BuildInfo;
pub use yaml::yaml;
