-- The arithmetic of src/limit/rule/mod.rs, shape by shape, in microseconds. A differential test compares the permits of both.
--
-- A count is loaded once per call, read and charged in memory, and saved once. `earliest` and `charge` never look back: permits of a
-- pool never go backwards, so a time that was passed stays passed. `opened`: a count that starts cold counts as used up at that time (0: empty).

local shapes = {}

-- Paced and bucket: { theoretical arrival time, the pace it was made with, newest call }.
shapes.gcra = {
  read = function(c, stored)
    c.tat = stored and stored[1] or (c.opened > 0 and c.opened + c.every * c.burst or 0)
    c.newest = stored and stored[3] or 0
    local every = stored and stored[2] or c.every
    if every == c.every or c.tat <= 0 then return end
    -- N has changed: what was in the bucket at the newest call stays in it, and leaves it at the new pace.
    local from = math.min(c.newest, c.tat - every) -- a call that was undone is not the newest
    c.tat, c.newest = from + math.ceil((c.tat - from) / every) * c.every, from
  end,
  write = function(c) return { c.tat, c.every, c.newest } end,
  earliest = function(c, t) return math.max(t, c.tat - c.every * (c.burst - 1)) end,
  charge = function(c, at) c.tat, c.newest = math.max(c.tat, at) + c.every, math.max(c.newest, at) end,
  undo = function(c, at, is_newest) if is_newest then c.tat = c.tat - c.every end end,
  used = function(c, now) return math.min(math.ceil(math.max(c.tat - now, 0) / c.every), c.burst) end,
}

-- Window, exact: a list of times. Its first element is no call that counts but the newest one forgotten: nothing goes before
-- that + T'. So cutting the list from the left moves the floor by itself.
shapes.exact = {
  load = function(c, k)
    local length = redis.call('LLEN', c.key)
    c.is_new, c.len = length == 0, math.max(length - 1, 0)
    c.forgotten = tonumber(length > 0 and redis.call('LINDEX', c.key, 0) or c.opened)
    -- The next k calls, and the look at the one after them, need these and no others; none while all of them fit in.
    c.first = math.max(c.len - c.calls, 0)
    c.slice = c.len + k >= c.calls and redis.call('LRANGE', c.key, c.first + 1, c.first + 1 + k) or {}
    c.new = {}
  end,
  save = function(c)
    local fresh = {}
    if c.is_new then fresh[1] = digits(c.forgotten) end
    for _, at in ipairs(c.new) do fresh[#fresh + 1] = digits(at) end
    -- A thousand at a time: Lua's stack is bounded.
    for i = 1, #fresh, 1000 do
      redis.call('RPUSH', c.key, unpack(fresh, i, math.min(i + 999, #fresh)))
    end
    local over = c.len + #c.new - c.keep
    -- After an undo `len` is one too many.
    if over > 0 and #c.new > 0 then redis.call('LTRIM', c.key, over, -1) end
  end,
  earliest = function(c, t)
    local floor = c.forgotten > 0 and c.forgotten + c.window or t
    local nth = c.len + #c.new - c.calls
    if nth < 0 then return math.max(t, floor) end
    local at = nth < c.len and tonumber(c.slice[nth - c.first + 1]) or c.new[nth - c.len + 1]
    return math.max(t, floor, at + c.window)
  end,
  charge = function(c, at) c.new[#c.new + 1] = at end,
  undo = function(c, at)
    redis.call('LREM', c.key, -1, digits(at))
    local first = digits(c.forgotten)
    -- A call that is forgotten already cannot be taken back.
    if redis.call('LINDEX', c.key, 0) ~= first then redis.call('LPUSH', c.key, first) end
  end,
  used = function(c, now)
    local count = c.opened > 0 and c.forgotten == c.opened and math.max(c.calls - c.len, 0) or 0
    for _, at in ipairs(redis.call('LRANGE', c.key, 1, -1)) do
      if at + c.window > now then count = count + 1 end
    end
    return count
  end,
}

-- Window, in sub-windows: { floor, end, calls, end, calls, ... } in order.
shapes.parts = {
  read = function(c, stored)
    c.parts = stored or { c.opened > 0 and c.opened + c.window or 0 }
    c.free_at, c.i, c.left = c.parts[1], 2, 0
    for i = 3, #c.parts, 2 do c.left = c.left + c.parts[i] end
  end,
  write = function(c)
    local over = math.floor((#c.parts - 1) / 2) - c.most
    if over <= 0 then return c.parts end
    local kept = { math.max(c.parts[1], c.parts[over * 2] + c.window) }
    for i = over * 2 + 2, #c.parts do kept[#kept + 1] = c.parts[i] end
    return kept
  end,
  earliest = function(c, t)
    -- Sub-windows from i on are those that leave room for one more; `left` is their sum.
    while c.left >= c.calls do
      c.free_at = math.max(c.free_at, c.parts[c.i] + c.window)
      c.left = c.left - c.parts[c.i + 1]
      c.i = c.i + 2
    end
    return math.max(t, c.free_at)
  end,
  charge = function(c, at)
    local ends_at = math.floor(at / c.len) * c.len + c.len
    c.left = c.left + 1
    -- At the end, or before sub-windows whose calls were all taken back.
    local i = #c.parts - 1
    while i > 1 and c.parts[i] > ends_at do i = i - 2 end
    if i > 1 and c.parts[i] == ends_at then
      c.parts[i + 1] = c.parts[i + 1] + 1
    else
      table.insert(c.parts, i + 2, ends_at)
      table.insert(c.parts, i + 3, 1)
    end
  end,
  undo = function(c, at)
    local ends_at = math.floor(at / c.len) * c.len + c.len
    for i = #c.parts - 1, 2, -2 do
      if c.parts[i] == ends_at and c.parts[i + 1] > 0 then
        c.parts[i + 1] = c.parts[i + 1] - 1
        return
      end
    end
  end,
  used = function(c, now)
    local count = c.opened > 0 and c.parts[1] == c.opened + c.window and math.max(c.calls - c.left, 0) or 0
    for i = 2, #c.parts, 2 do
      if c.parts[i] + c.window > now then count = count + c.parts[i + 1] end
    end
    return count
  end,
}

-- The periods around now that a call at `at` counts in, by their numbers among the edges: its own, and a neighbour whose edge is within the
-- skew. A time beyond the edges counts nowhere, and no permit is given that far ahead.
local function touched(edges, skew, at)
  for i = 1, #edges - 1 do
    if edges[i] <= at and at < edges[i + 1] then
      local periods = {}
      if i > 1 and at - skew < edges[i] then periods[1] = i - 1 end
      periods[#periods + 1] = i
      if i + 1 < #edges and at + skew >= edges[i + 1] then periods[#periods + 1] = i + 1 end
      return periods
    end
  end
  return {}
end

-- Calendar: { start, calls, start, calls, ... } for periods of the vendor's zone, whose edges the caller knows. They are of wall time, which is
-- `ahead` of the timeline.
shapes.calendar = {
  read = function(c, stored)
    c.spent = {}
    for i = 1, #(stored or {}), 2 do c.spent[stored[i]] = stored[i + 1] end
  end,
  write = function(c)
    local kept = {}
    for start, calls in pairs(c.spent) do
      if start >= c.edges[1] then kept[#kept + 1], kept[#kept + 2] = start, calls end
    end
    return kept
  end,
  earliest = function(c, t)
    local again = true
    while again do
      again = false
      for _, i in ipairs(touched(c.edges, c.skew, t + c.ahead)) do
        if not again and (c.spent[c.edges[i]] or 0) >= c.calls then
          t, again = math.max(t, c.edges[i + 1] + c.skew - c.ahead), true
        end
      end
    end
    return t
  end,
  charge = function(c, at)
    for _, i in ipairs(touched(c.edges, c.skew, at + c.ahead)) do
      local start = c.edges[i]
      c.spent[start] = (c.spent[start] or 0) + 1
    end
  end,
  undo = function(c, at)
    for _, i in ipairs(touched(c.edges, c.skew, at + c.ahead)) do
      local start = c.edges[i]
      c.spent[start] = math.max((c.spent[start] or 0) - 1, 0)
    end
  end,
  used = function(c, now)
    for i = 1, #c.edges - 1 do
      if c.edges[i] <= now + c.ahead and now + c.ahead < c.edges[i + 1] then return c.spent[c.edges[i]] or 0 end
    end
    return 0
  end,
}
