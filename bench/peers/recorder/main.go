// Command recorder is the naive alternative to Tidemark: a dynamic informer for every resource that can be
// listed and watched, which appends each object that it is shown to a file of JSON lines, with one fsync per batch. It
// cannot tell what it missed, seals no Secrets, drops no old versions and restores nothing.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

type line struct {
	Op     string                     `json:"op"`
	Object *unstructured.Unstructured `json:"object"`
}

func main() {
	kubeconfig, file := flag.String("kubeconfig", "", "kubeconfig file"), flag.String("file", "objects.jsonl", "file to append to")
	mode := flag.String("mode", "record", "record; inform: the same informers, and nothing is done with what they show; read: the bytes of the watches are read, and no more")
	flag.Parse()
	switch *mode {
	case "inform":
		log.Fatal(inform(context.Background(), *kubeconfig))
	case "read":
		log.Fatal(read(context.Background(), *kubeconfig))
	}
	log.Fatal(record(context.Background(), *kubeconfig, *file))
}

// record goes on until something fails.
func record(ctx context.Context, kubeconfig, file string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	recorded, err := resources(config)
	if err != nil {
		return err
	}
	factory := dynamicinformer.NewDynamicSharedInformerFactory(dynamic.NewForConfigOrDie(config), 0)
	lines := make(chan line, 1024)
	see := func(op string) func(any) {
		return func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			lines <- line{op, o.(*unstructured.Unstructured)}
		}
	}
	for _, r := range recorded {
		_, err := factory.ForResource(r).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: see("add"), UpdateFunc: func(_, o any) { see("update")(o) }, DeleteFunc: see("delete"),
		})
		if err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	go func() {
		factory.WaitForCacheSync(ctx.Done())
		fmt.Println("listed")
	}()
	return write(f, lines)
}

// resources are those that can be listed and watched. What Tidemark leaves out by default is left out here, too.
func resources(config *rest.Config) (all []schema.GroupVersionResource, err error) {
	lists, err := discovery.NewDiscoveryClientForConfigOrDie(config).ServerPreferredResources()
	if err != nil {
		return nil, err
	}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			if slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "watch") && !slices.Contains([]string{"events", "leases"}, r.Name) {
				all = append(all, gv.WithResource(r.Name))
			}
		}
	}
	return all, nil
}

// write appends what comes, and syncs when nothing more waits. It says on stdout what is on disk now.
func write(f *os.File, lines <-chan line) error {
	out := bufio.NewWriterSize(f, 1<<20)
	encoder := json.NewEncoder(out)
	for n, first := 0, (line{}); ; {
		first = <-lines
		for more := true; more; {
			if err := encoder.Encode(first); err != nil {
				return err
			}
			n++
			select {
			case first = <-lines:
			default:
				more = false
			}
		}
		if err := out.Flush(); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		var newest metav1.Object = first.Object
		fmt.Println("synced", n, newest.GetResourceVersion(), time.Now().UnixNano())
	}
}
