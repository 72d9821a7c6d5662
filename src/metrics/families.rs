//! Creates and registers metric families. Names and labels are constants in the code, so that
//! nothing here can fail at run time.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

pub(super) fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> C {
    registry
        .register(Box::new(collector.clone()))
        .expect("family names are unique");
    collector
}

pub(super) fn family(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> IntCounterVec {
    let family = IntCounterVec::new(Opts::new(name, help), labels);
    register(registry, family.expect("names and labels are constants"))
}

pub(super) fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(
        registry,
        IntCounter::new(name, help).expect("names and labels are constants"),
    )
}

pub(super) fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(
        registry,
        IntGauge::new(name, help).expect("names and labels are constants"),
    )
}

pub(super) fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let family = IntGaugeVec::new(Opts::new(name, help), labels);
    register(registry, family.expect("names and labels are constants"))
}

pub(super) fn plain_histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
    register(
        registry,
        Histogram::with_opts(options).expect("names and labels are constants"),
    )
}

pub(super) fn histogram_by(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
    let family = HistogramVec::new(options, &[label]);
    register(registry, family.expect("names and labels are constants"))
}

#[cfg(target_os = "linux")]
pub(super) fn process_metrics(registry: &Registry) {
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry
        .register(Box::new(process))
        .expect("registered once, here");
}

#[cfg(not(target_os = "linux"))]
pub(super) fn process_metrics(_: &Registry) {}
