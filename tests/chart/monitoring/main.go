// Reads objects for the Prometheus operator with that operator's own types, strictly: a field that it does not know, or of
// another type, is an error. Prints the kinds that it has read.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := check(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(from io.Reader) error {
	text, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	for _, document := range strings.Split(string(text), "\n---\n") {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			return err
		}
		var into any
		switch kind.Kind {
		case "ServiceMonitor":
			into = &monitoring.ServiceMonitor{}
		case "PrometheusRule":
			into = &monitoring.PrometheusRule{}
		default:
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
			return fmt.Errorf("%s: %w", kind.Kind, err)
		}
		fmt.Println(kind.Kind)
	}
	return nil
}
