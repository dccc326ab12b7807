//! DCGM exporters' own `/metrics`.

use forebay_config::GpuFigure;
use futures_util::future::try_join_all;

use super::Client;
use super::exposition::samples;

/// The mean of a figure over the GPUs of all `urls`; `None` where there are none.
pub(super) async fn read(
    client: &Client,
    figure: GpuFigure,
    urls: &[String],
    labels: &[(String, String)],
) -> Result<Option<f64>, String> {
    let read = |url: &String| {
        let url = metrics(url);
        async move { client.text(&url).await.map_err(|error| format!("{url}: {error}")) }
    };
    let texts = try_join_all(urls.iter().map(read)).await?;
    Ok(mean(&texts, figure, labels))
}

/// An exporter's address, with the path that it serves at unless it has one.
fn metrics(url: &str) -> String {
    let path = url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    if path { url.to_owned() } else { format!("{url}/metrics") }
}

fn mean(texts: &[String], figure: GpuFigure, labels: &[(String, String)]) -> Option<f64> {
    let all = |name: &'static str| {
        let selected = texts.iter().flat_map(move |text| samples(text, name)).filter(|sample| {
            labels.iter().all(|(label, value)| sample.label(label) == Some(value))
        });
        selected.fold((0.0, 0_u32), |(sum, count), sample| (sum + sample.value, count + 1))
    };
    let (sum, count) = all(figure.metric());
    if count == 0 {
        return None;
    }
    match figure {
        GpuFigure::MemoryUsed => {
            let (free, _) = all("DCGM_FI_DEV_FB_FREE");
            Some(100.0 * sum / (sum + free))
        }
        _ => Some(sum / f64::from(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",device="nvidia0",pod="vllm-0"} 90
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-b",device="nvidia1",pod="vllm-1"} 70
DCGM_FI_DEV_GPU_UTIL{gpu="2",UUID="GPU-c",device="nvidia2",pod="other"} 2
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a",pod="vllm-0"} 60000
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a",pod="vllm-0"} 20000
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",pod="vllm-0"} 612.5
"#;

    #[test]
    fn figures_are_means_over_the_selected_gpus() {
        let pod = |name: &str| vec![("pod".to_owned(), name.to_owned())];
        for (case, figure, labels, want) in [
            ("all", GpuFigure::Utilization, vec![], Some(54.0)),
            ("one pod's", GpuFigure::Utilization, pod("vllm-1"), Some(70.0)),
            ("nobody's", GpuFigure::Utilization, pod("vllm-9"), None),
            ("percent of the memory", GpuFigure::MemoryUsed, vec![], Some(75.0)),
            ("watts", GpuFigure::Power, vec![], Some(612.5)),
            ("not exported", GpuFigure::MemoryCopyUtilization, vec![], None),
        ] {
            assert_eq!(mean(&[TEXT.to_owned()], figure, &labels), want, "{case}");
        }
        let two = [TEXT.to_owned(), TEXT.replace(" 90", " 10").replace(" 70", " 10")];
        assert_eq!(mean(&two, GpuFigure::Utilization, &[]), Some((162.0 + 22.0) / 6.0));
    }

    #[test]
    fn an_exporter_is_asked_at_its_metrics() {
        assert_eq!(metrics("http://dcgm:9400"), "http://dcgm:9400/metrics");
        assert_eq!(metrics("http://dcgm:9400/other"), "http://dcgm:9400/other");
    }
}
