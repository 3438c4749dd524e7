package cli

import (
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/replay/transform"
)

// transformFlags say what is changed in objects on their way back.
type transformFlags struct {
	classes, images, modifiers, expressions []string
}

func (f *transformFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringSliceVar(&f.classes, "storage-class-mappings", nil, "claims and volumes of one storage class get another, OLD:NEW")
	fs.StringArrayVar(&f.images, "image-rewrite", nil, "images of one registry, or below a path in it, come from another, FROM=TO, such as docker.io=registry.example.com/mirror")
	fs.StringArrayVar(&f.modifiers, "resource-modifiers", nil, "file with Velero's resource modifiers, or the ConfigMap that holds them; may be given several times")
	fs.StringArrayVar(&f.expressions, "transform", nil, `CEL expression that gives a JSON merge patch of the object, such as 'resource == "deployments.apps" ? {"spec": {"replicas": 1}} : {}', or @FILE with several; may be given several times`)
}

// read makes the transforms; nil when there are none.
func (f *transformFlags) read() (*transform.Set, error) {
	if len(f.classes)+len(f.images)+len(f.modifiers)+len(f.expressions) == 0 {
		return nil, nil
	}
	o := transform.Options{StorageClasses: map[string]string{}}
	for _, c := range f.classes {
		from, to, ok := strings.Cut(c, ":")
		if !ok || from == "" || to == "" {
			return nil, usage("--storage-class-mappings %q: want OLD:NEW", c)
		}
		o.StorageClasses[from] = to
	}
	for _, i := range f.images {
		r, err := transform.ParseImageRewrite(i)
		if err != nil {
			return nil, usage("--image-rewrite: %v", err)
		}
		o.Images = append(o.Images, r)
	}
	for _, name := range f.modifiers {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, usage("--resource-modifiers: %v", err)
		}
		o.Modifiers = append(o.Modifiers, transform.File{Name: name, Text: text})
	}
	for _, text := range f.expressions {
		name, isFile := strings.CutPrefix(text, "@")
		if !isFile {
			o.Expressions = append(o.Expressions, transform.Expression{Name: "--transform " + strconv.Quote(text[:min(len(text), 40)]), Patch: text})
			continue
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, usage("--transform: %v", err)
		}
		all, err := transform.ParseExpressions(transform.File{Name: name, Text: content})
		if err != nil {
			return nil, usage("--transform: %v", err)
		}
		o.Expressions = append(o.Expressions, all...)
	}
	s, err := transform.New(o)
	if err != nil {
		return nil, usage("%v", err)
	}
	return s, nil
}
