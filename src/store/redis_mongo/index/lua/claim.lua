-- Leases entries to a worker. Priorities share by stride scheduling (16 : 4 : 1); within one, polls go before calls, and entries that were given
-- back go first.
-- ARGV: now, streams, depth, most, calls, consumer, claimed (-1, or how many calls had ever been claimed when `calls` was computed: those
-- claimed since count against it).
-- Gives: epoch, how many streams are low while tenants have something due in MongoDB, when the next call and the next poll are due now (as in
-- look.lua), then for each entry: stream, entry, id. Only the epoch while the index is not open.
local now, streams, depth = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local most, calls, consumer = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local name, is_open, looks, claimed_before, spent0, spent1, spent2 = epoch_of_this_run('looks', 'claimed', 'spent0', 'spent1', 'spent2')
if not name then return {''} end
if not is_open then return {name} end
local here, free = waiting_in_all(streams)
for stream = streams, 5 do here[stream], free[stream] = 0, 0 end
local some_wait = has_tenants(0, streams - 1)
for stream = 0, some_wait and streams - 1 or -1 do wake(stream, now) end
calls = math.min(calls, most)
if tonumber(ARGV[7]) >= 0 then
  calls = math.max(0, calls - (tonumber(claimed_before or 0) - tonumber(ARGV[7])))
end

-- Whose turn it is: the priority that has spent the least goes next and pays the inverse of its share.
local COST = {[0] = 1, 4, 16}
local spent, left = {}, {}
local stored = {spent0, spent1, spent2}
for p = 0, 2 do
  spent[p] = tonumber(stored[p + 1]) or -1
  left[p] = here[p + 3] + here[p]
end
local least
for p = 0, 2 do
  if left[p] > 0 and spent[p] >= 0 and (not least or spent[p] < least) then least = spent[p] end
end
-- A priority that was idle earns no credit.
for p = 0, 2 do
  if left[p] > 0 and spent[p] < 0 then spent[p] = least or 0 end
end
local quota, order = {}, {}
for stream = 0, 5 do quota[stream] = 0 end
while #order < most do
  local best
  for p = 0, 2 do
    local some = here[p + 3] > quota[p + 3] or (calls > 0 and here[p] > quota[p])
    if some and (not best or spent[p] < spent[best]) then best = p end
  end
  if not best then break end
  local stream = best
  if here[best + 3] > quota[best + 3] then stream = best + 3 else calls = calls - 1 end
  quota[stream] = quota[stream] + 1
  spent[best] = spent[best] + COST[best]
  order[#order + 1] = stream
end

local taken, claimed = {}, 0
for stream = 0, streams - 1 do
  local jobs, entries = key_of(stream, 'jobs'), {}
  local back = math.min(quota[stream], free[stream])
  if back > 0 then
    local claim = {'XCLAIM', jobs, GROUP, consumer, '0'}
    for _, pending in ipairs(redis.call('XPENDING', jobs, GROUP, '-', '+', back, FREE)) do
      claim[#claim + 1] = pending[1]
    end
    entries = redis.call(unpack(claim))
  end
  if quota[stream] > back then
    local read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', quota[stream] - back, 'STREAMS', jobs, '>')
    for _, entry in ipairs(read and read[1][2] or {}) do entries[#entries + 1] = entry end
  end
  entries = well_formed(stream, entries)
  local names, notes = {}, {}
  for _, entry in ipairs(entries) do
    names[#names + 1] = entry[1]
    notes[#notes + 1], notes[#notes + 2] = entry[2][2], leased_at(stream, entry[1], consumer)
  end
  if #names > 0 then
    lease(stream, names, consumer, looks)
    redis.call('HSET', index, unpack(notes))
  end
  taken[stream] = entries
  if stream < 3 then claimed = claimed + #entries end
end
local fields = {}
for p = 0, 2 do
  local idle = here[p] + here[p + 3] == quota[p] + quota[p + 3]
  local paid = number(idle and -1 or spent[p])
  if paid ~= (stored[p + 1] or '-1') then fields[#fields + 1], fields[#fields + 2] = 'spent' .. p, paid end
end
if claimed > 0 then fields[#fields + 1], fields[#fields + 2] = 'claimed', number((claimed_before or 0) + claimed) end
if #fields > 0 then
  if #order == 0 then even_when_full() end -- otherwise reading from a stream was the first write, which a full Redis allows
  redis.call('HSET', state, unpack(fields))
end
local low, left_in = 0, {}
for stream = 0, streams - 1 do
  left_in[stream] = here[stream] - #taken[stream]
  if some_wait and is_low(left_in[stream], depth) and redis.call('ZCARD', key_of(stream, 'due')) > 0 then low = low + 1 end
end
local next_call, next_poll = next_due(streams, now, left_in, some_wait)
local answer, at = {name, tostring(low), next_call, next_poll}, {}
for _, stream in ipairs(order) do
  at[stream] = (at[stream] or 0) + 1
  local entry = taken[stream][at[stream]]
  if entry then
    answer[#answer + 1] = tostring(stream)
    answer[#answer + 1] = entry[1]
    answer[#answer + 1] = entry[2][2]
  end
end
return answer
