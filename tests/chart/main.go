// Runs the Lua scripts for Argo CD as Argo CD does: gopher-lua without its libraries but package, base and table, with `os`
// reduced to time and date, one second for each script, and gopher-json for what they return. Nothing else of Argo CD is here.
//
//	argocd-lua test FOLDER [CONFIGMAP]    the tests of a folder resource_customizations; with the scripts of a ConfigMap if given
//	argocd-lua health FOLDER              how an object on standard input is, as JSON
//	argocd-lua action FOLDER NAME         what an action makes of the object on standard input, as JSON
//	argocd-lua script FILE                what a script returns
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"time"

	lua "github.com/yuin/gopher-lua"
	luajson "layeh.com/gopher-json"
	"sigs.k8s.io/yaml"
)

type object = map[string]any

// run gives what a script returns, as JSON.
func run(script string, obj object) ([]byte, error) {
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		if err := l.CallByParam(lua.P{Fn: l.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return nil, err
		}
	}
	l.PreloadModule(lua.OsLibName, safeOs)
	limit, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	l.SetContext(limit)
	l.SetGlobal("obj", luajson.DecodeValue(l, map[string]any(obj)))
	if err := l.DoString(script); err != nil {
		return nil, err
	}
	if l.Get(-1).Type() != lua.LTTable {
		return nil, fmt.Errorf("a script returns a table, this one %s", l.Get(-1).Type())
	}
	return luajson.Encode(l.Get(-1))
}

// safeOs is `require("os")`: time and date, and nothing that reaches files, variables or processes.
func safeOs(l *lua.LState) int {
	whole := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer whole.Close()
	lua.OpenOs(whole)
	full := whole.GetGlobal(lua.OsLibName).(*lua.LTable)
	module := l.NewTable()
	for _, name := range []string{"time", "date"} {
		module.RawSetString(name, l.NewFunction(full.RawGetString(name).(*lua.LFunction).GFunction))
	}
	l.Push(module)
	return 1
}

// scripts finds the text of a script by its path in a kind's folder.
type scripts func(kind, path string) (string, error)

func ofFolder(folder string) scripts {
	return func(kind, path string) (string, error) {
		text, err := os.ReadFile(filepath.Join(folder, "daskade.dev", kind, path))
		return string(text), err
	}
}

// ofConfigMap reads the keys that Argo CD reads in argocd-cm.
func ofConfigMap(file string) (scripts, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var configMap struct{ Data map[string]string }
	if err := yaml.Unmarshal(text, &configMap); err != nil {
		return nil, err
	}
	return func(kind, path string) (string, error) {
		if path == "health.lua" {
			return found(configMap.Data["resource.customizations.health.daskade.dev_"+kind], kind, path)
		}
		var actions struct {
			Discovery   string `json:"discovery.lua"`
			Definitions []struct {
				Name   string `json:"name"`
				Action string `json:"action.lua"`
			} `json:"definitions"`
		}
		if err := yaml.UnmarshalStrict([]byte(configMap.Data["resource.customizations.actions.daskade.dev_"+kind]), &actions); err != nil {
			return "", err
		}
		if path == "actions/discovery.lua" {
			return found(actions.Discovery, kind, path)
		}
		for _, action := range actions.Definitions {
			if path == "actions/"+action.Name+"/action.lua" {
				return found(action.Action, kind, path)
			}
		}
		return found("", kind, path)
	}, nil
}

func found(script, kind, path string) (string, error) {
	if script == "" {
		return "", fmt.Errorf("the ConfigMap has no %s of %s", path, kind)
	}
	return script, nil
}

type healthStatus struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type discovered struct {
	Name        string `json:"name"`
	DisplayName string `json:"displayName"`
	Disabled    bool   `json:"disabled"`
}

// impact is what an action does to one object.
type impact struct {
	Operation string `json:"operation"`
	Resource  object `json:"resource"`
}

func health(scripts scripts, kind string, obj object) (status healthStatus, err error) {
	script, err := scripts(kind, "health.lua")
	if err != nil {
		return status, err
	}
	result, err := run(script, obj)
	if err != nil {
		return status, err
	}
	if err := json.Unmarshal(result, &status); err != nil {
		return status, err
	}
	switch status.Status {
	case "Unknown", "Progressing", "Suspended", "Healthy", "Degraded", "Missing":
		return status, nil
	}
	return status, fmt.Errorf("%q is no health", status.Status)
}

func discover(scripts scripts, kind string, obj object) ([]discovered, error) {
	script, err := scripts(kind, "actions/discovery.lua")
	if err != nil {
		return nil, err
	}
	result, err := run(script, obj)
	if err != nil {
		return nil, err
	}
	named := map[string]discovered{}
	if err := json.Unmarshal(result, &named); err != nil {
		return nil, err
	}
	var list []discovered
	for name, action := range named {
		action.Name = name
		list = append(list, action)
	}
	return sorted(list), nil
}

func sorted(list []discovered) []discovered {
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// act runs an action. One that returns an object patches that object, one that returns a list says what it does.
func act(scripts scripts, kind, name string, obj object) ([]impact, error) {
	script, err := scripts(kind, "actions/"+name+"/action.lua")
	if err != nil {
		return nil, err
	}
	result, err := run(script, obj)
	if err != nil {
		return nil, err
	}
	var impacts []impact
	if result[0] == '[' {
		err = json.Unmarshal(result, &impacts)
	} else {
		changed := object{}
		err = json.Unmarshal(result, &changed)
		impacts = []impact{{"patch", keepEmpty(changed, obj).(object)}}
	}
	return impacts, err
}

// keepEmpty gives an empty mapping back, which Lua made an empty list, where the object had one.
func keepEmpty(changed, before any) any {
	switch changed := changed.(type) {
	case object:
		if before, ok := before.(object); ok {
			for key, value := range changed {
				if old, ok := before[key]; ok {
					changed[key] = keepEmpty(value, old)
				}
			}
		}
	case []any:
		if before, ok := before.(object); ok && len(changed) == 0 {
			return before
		}
		if before, ok := before.([]any); ok {
			for at := range changed {
				if at < len(before) {
					changed[at] = keepEmpty(changed[at], before[at])
				}
			}
		}
	}
	return changed
}

func read(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// report counts and tells what does not fit.
type report struct{ passed, failed int }

func (r *report) check(what string, err error, found, expected any) {
	switch {
	case err != nil:
		r.failed++
		fmt.Printf("%s: %v\n", what, err)
	case !reflect.DeepEqual(found, expected):
		r.failed++
		one, _ := json.Marshal(found)
		other, _ := json.Marshal(expected)
		fmt.Printf("%s:\n   found %s\n  expect %s\n", what, one, other)
	default:
		r.passed++
	}
}

func test(folder string, scripts scripts) (r report) {
	kinds, err := os.ReadDir(filepath.Join(folder, "daskade.dev"))
	if err != nil {
		r.check(folder, err, nil, nil)
	}
	for _, entry := range kinds {
		kind := entry.Name()
		testHealth(&r, filepath.Join(folder, "daskade.dev", kind), kind, scripts)
		testActions(&r, filepath.Join(folder, "daskade.dev", kind, "actions"), kind, scripts)
	}
	return r
}

func testHealth(r *report, at, kind string, scripts scripts) {
	var cases struct {
		Tests []struct {
			InputPath    string       `json:"inputPath"`
			HealthStatus healthStatus `json:"healthStatus"`
		} `json:"tests"`
	}
	if err := read(filepath.Join(at, "health_test.yaml"), &cases); err != nil {
		r.check(at, err, nil, nil)
	}
	for _, one := range cases.Tests {
		obj := object{}
		err := read(filepath.Join(at, one.InputPath), &obj)
		var found healthStatus
		if err == nil {
			found, err = health(scripts, kind, obj)
		}
		r.check(kind+" health "+one.InputPath, err, found, one.HealthStatus)
	}
}

func testActions(r *report, at, kind string, scripts scripts) {
	var cases struct {
		DiscoveryTests []struct {
			InputPath string       `json:"inputPath"`
			Result    []discovered `json:"result"`
		} `json:"discoveryTests"`
		ActionTests []struct {
			Action             string `json:"action"`
			InputPath          string `json:"inputPath"`
			ExpectedOutputPath string `json:"expectedOutputPath"`
		} `json:"actionTests"`
	}
	if err := read(filepath.Join(at, "action_test.yaml"), &cases); err != nil {
		r.check(at, err, nil, nil)
	}
	for _, one := range cases.DiscoveryTests {
		obj := object{}
		err := read(filepath.Join(at, one.InputPath), &obj)
		var found []discovered
		if err == nil {
			found, err = discover(scripts, kind, obj)
		}
		r.check(kind+" discovery "+one.InputPath, err, found, sorted(one.Result))
	}
	for _, one := range cases.ActionTests {
		obj := object{}
		var expected any
		err := errors.Join(read(filepath.Join(at, one.InputPath), &obj), read(filepath.Join(at, one.ExpectedOutputPath), &expected))
		var found []impact
		if err == nil {
			found, err = act(scripts, kind, one.Action, obj)
		}
		r.check(kind+" "+one.Action+" "+one.InputPath, err, told(found), expected)
	}
}

// told has the form of expected outputs: an object where one is patched, else the list. The time in a name is replaced.
func told(impacts []impact) any {
	if len(impacts) == 1 && impacts[0].Operation == "patch" {
		return plain(impacts[0].Resource)
	}
	list := []any{}
	for _, impact := range impacts {
		metadata := impact.Resource["metadata"].(object)
		name := metadata["name"].(string)
		if cut := strings.TrimRight(name, "0123456789"); len(name)-len(cut) >= 10 {
			metadata["name"] = cut + "TIME"
		}
		list = append(list, object{"k8sOperation": impact.Operation, "unstructuredObj": impact.Resource})
	}
	return plain(list)
}

// plain gives the value with the types that JSON has.
func plain(value any) (result any) {
	text, _ := json.Marshal(value)
	_ = json.Unmarshal(text, &result)
	return result
}

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func command(words []string) error {
	switch {
	case len(words) >= 2 && words[0] == "test":
		from := ofFolder(words[1])
		if len(words) == 3 {
			var err error
			if from, err = ofConfigMap(words[2]); err != nil {
				return err
			}
		}
		r := test(words[1], from)
		fmt.Printf("%d passed, %d failed\n", r.passed, r.failed)
		if r.failed > 0 || r.passed == 0 {
			return errors.New("the scripts do not do what their tests say")
		}
	case len(words) == 2 && words[0] == "health":
		obj, err := standardInput()
		if err != nil {
			return err
		}
		status, err := health(ofFolder(words[1]), obj["kind"].(string), obj)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(status)
	case len(words) == 3 && words[0] == "action":
		obj, err := standardInput()
		if err != nil {
			return err
		}
		impacts, err := act(ofFolder(words[1]), obj["kind"].(string), words[2], obj)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(impacts)
	case len(words) == 2 && words[0] == "script":
		text, err := os.ReadFile(words[1])
		if err != nil {
			return err
		}
		result, err := run(string(text), object{})
		fmt.Printf("%s\n", result)
		return err
	default:
		return errors.New("argocd-lua test FOLDER [CONFIGMAP] | health FOLDER | action FOLDER NAME | script FILE")
	}
	return nil
}

func standardInput() (obj object, err error) {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, err
	}
	return obj, yaml.Unmarshal(text, &obj)
}
