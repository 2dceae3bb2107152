//! `/health`, `/ready` and `/metrics` over HTTP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::health::Health;
use super::metrics::Metrics;

/// As the OpenMetrics specification names it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Told {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// Listens on an address. `[::]` means all addresses, those of IPv4 too, also on a machine without IPv6.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Answers until the listener breaks.
pub async fn serve(listener: TcpListener, health: Arc<Health>, metrics: Arc<Metrics>) -> io::Result<()> {
    let routes = Router::new()
        .route("/health", get(is_up))
        .route("/ready", get(is_ready))
        .route("/metrics", get(all_metrics))
        .with_state(Told { health, metrics });
    axum::serve(listener, routes).await
}

/// Says only that the process answers.
async fn is_up() -> &'static str {
    "ok\n"
}

async fn is_ready(State(told): State<Told>) -> impl IntoResponse {
    let (ready, document) = told.health.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{document}\n"))
}

async fn all_metrics(State(told): State<Told>) -> impl IntoResponse {
    match told.metrics.encode() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], String::new()),
    }
}
