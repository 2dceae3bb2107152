//! What a text looks like, in words, where its regular expression says little to people.

use super::{
    cluster::GPU_RESOURCE_PATTERN,
    duration::{DURATION_PATTERN, POSITIVE_DURATION_PATTERN},
    pipeline::{ADDRESS_PATTERN, ARCHIVE_URL_PATTERN, TIME_ZONE_PATTERN},
    schema::{IMAGE_PATTERN, OBJECT_REF_PATTERN},
    step::CALL_PATTERN,
    storage::{ENDPOINT_PATTERN, STORAGE_URL_PATTERN},
};

/// A hint at the form of texts that `pattern` takes.
pub fn form(pattern: &str) -> Option<&'static str> {
    Some(match pattern {
        CALL_PATTERN => "module:function, for example model:fit",
        ADDRESS_PATTERN => "tcp://host:port or tls://host:port",
        STORAGE_URL_PATTERN => {
            "s3://bucket/prefix, gs://bucket/prefix or file:///folder, the bucket of 3 or more lower-case letters, digits, dots, \
             dashes and underscores, without empty, . and .. parts"
        }
        ARCHIVE_URL_PATTERN => {
            "s3://bucket/flow.zip, gs://bucket/flow.tar.gz or file:///folder/flow.zip, without empty, . and .. parts"
        }
        ENDPOINT_PATTERN => "http://host:port or https://host:port, without user and password",
        DURATION_PATTERN => "whole numbers with the units ms, s, m, h and d, for example 90s or 1h30m",
        POSITIVE_DURATION_PATTERN => {
            "whole numbers with the units ms, s, m, h and d, above zero, for example 90s or 1h30m"
        }
        OBJECT_REF_PATTERN => "lower-case letters, digits, dashes and dots",
        IMAGE_PATTERN => "registry/repository:tag or registry/repository@sha256:digest",
        GPU_RESOURCE_PATTERN => "domain/name, for example nvidia.com/gpu",
        TIME_ZONE_PATTERN => "a name of the time zone database, for example Europe/Berlin",
        _ => return None,
    })
}
