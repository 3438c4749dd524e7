package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// inform is what informers cost of which nobody wants anything: the part of the recorder that is not its own.
func inform(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	recorded, err := resources(config)
	if err != nil {
		return err
	}
	var seen atomic.Int64
	factory := dynamicinformer.NewDynamicSharedInformerFactory(dynamic.NewForConfigOrDie(config), 0)
	for _, r := range recorded {
		_, err := factory.ForResource(r).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { seen.Add(1) }, UpdateFunc: func(_, _ any) { seen.Add(1) }, DeleteFunc: func(any) { seen.Add(1) },
		})
		if err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	return tell(ctx, &seen)
}

// read watches everything from its beginning on, and reads the lines without looking at them: HTTP/2 and TLS alone, which no
// client of the API can do without.
func read(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.DisableCompression = true
	recorded, err := resources(config)
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	var seen atomic.Int64
	for _, r := range recorded {
		go func() {
			for ctx.Err() == nil {
				if err := readOne(ctx, client, config.Host, r, &seen); err != nil {
					fmt.Println("error", err)
					time.Sleep(time.Second)
				}
			}
		}()
	}
	return tell(ctx, &seen)
}

func readOne(ctx context.Context, client *http.Client, host string, r schema.GroupVersionResource, seen *atomic.Int64) error {
	path := strings.Replace("/apis/"+r.Group+"/"+r.Version+"/"+r.Resource, "/apis//", "/api/", 1)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, host+path+"?watch=true", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	in := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		switch _, err := in.ReadSlice('\n'); {
		case err == nil:
			seen.Add(1)
		case errors.Is(err, io.EOF):
			return nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}

// tell says what was seen, as the recorder says what it has synced.
func tell(ctx context.Context, seen *atomic.Int64) error {
	for last, listed := int64(-1), false; ; {
		now := seen.Load()
		if now == last && !listed {
			fmt.Println("listed")
			listed = true
		}
		if now != last {
			fmt.Println("synced", now, 0, time.Now().UnixNano())
		}
		last = now
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
