package main

import (
	"errors"
	"net/http"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

// newPoliciesCommand enforces NetworkPolicies on one node: its verdict is asked for by way of a netfilter queue, into which
// somebody has to put the packets that open a connection. It is the main function of kube-network-policies for use outside
// of a pod, and without admin policies.
//
// NRI stays enabled: without a runtime that serves it nothing comes of it, and to disable it makes version 0.8.0 read a nil
// pointer at the first address that is no pod's.
func newPoliciesCommand() *cobra.Command {
	var kubeconfig, metrics string
	var config networkpolicy.Config
	c := &cobra.Command{Use: "kube-network-policies", Args: cobra.NoArgs, SilenceUsage: true}
	c.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	c.Flags().StringVar(&config.NodeName, "hostname-override", "", "the node's name, if not that of the host")
	c.Flags().BoolVar(&config.FailOpen, "fail-open", false, "let packets pass that get no verdict")
	c.Flags().IntVar(&config.QueueID, "nfqueue-id", 100, "the netfilter queue's number")
	c.Flags().StringVar(&metrics, "metrics-bind-address", "127.0.0.1:9080", "where metrics are served")
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		// Where the kernel lacks CONFIG_NFT_QUEUE it tells at length, at every change, that its own rules cannot be made.
		if !klog.V(1).Enabled() {
			klog.SetLogger(logr.Discard())
		}
		rest, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(rest)
		if err != nil {
			return err
		}
		shared := informers.NewSharedInformerFactory(client, 0)
		controller, err := networkpolicy.NewController(client, shared.Networking().V1().NetworkPolicies(),
			shared.Core().V1().Namespaces(), shared.Core().V1().Pods(), nil, nil, nil, nil, config)
		if err != nil {
			return err
		}
		shared.Start(ctx.Done())
		ended := make(chan error, 2)
		go func() { ended <- http.ListenAndServe(metrics, promhttp.Handler()) }()
		go func() { ended <- controller.Run(ctx) }()
		if err := <-ended; err != nil {
			return err
		}
		if ctx.Err() == nil {
			return errors.New("ended by itself")
		}
		return nil
	}
	return c
}
